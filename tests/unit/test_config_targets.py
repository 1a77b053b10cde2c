"""Targets, and hosts whose files are come for: what is right, and every mistake with its line."""

import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capkeep.config import ssh, syntax
from capkeep.config.expand import Pulls, jobs
from capkeep.config.mistakes import MistakesError
from capkeep.config.model import Config
from capkeep.config.quoting import toml
from capkeep.config.settings import as_toml
from capkeep.config.syntax import kebab
from capkeep.plan.pull import reader_name
from capkeep.rooms.protocol import Message
from capkeep.rooms.pull.asked import NAME_MOST, NOT_IN_NAMES, TAGS_MOST, request_of
from capkeep.rooms.pull.link import SETTABLE
from capkeep.values import SecretSource, ValueMistake
from tests.unit.pulled import ECDSA, ED25519, KEPT, SERVER, Host, RootsOwn
from tests.unit.pulled import TARGET as ANSWERER


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr("capkeep.config.load.Owner", RootsOwn)
    return Host(tmp_path.resolve())


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


# -- what is right


def test_a_job_of_many_targets_is_many_jobs(host: Host) -> None:
    config = host.load(SERVER)
    assert [j.name for j in config.jobs] == ["hosts.web1", "hosts.web2", "bases.db", "own"]
    assert [(j.target, j.host) for j in config.jobs] == [
        ("web1", "web1"), ("web2", "two.example.org"), ("db", "db"), ("", ""),
    ]  # fmt: skip
    assert [j.repositories for j in config.jobs] == [
        ("pulled.web1",), ("pulled.web2",), ("pulled.db",), ("local",),
    ]  # fmt: skip
    for job in config.jobs[:2]:
        assert job.copies is not None
        assert (job.copies.origin, job.copies.targets) == (
            f"pulled.{job.target}", (f"away.{job.target}",),
        )  # fmt: skip
        assert job.retention
        assert job.check
        assert job.drill
        assert job.schedule == ("03:00",)
    assert config.notify[0].jobs == ("hosts.web1", "hosts.web2")
    assert config.parallel_pulls == 3


def test_a_repository_of_each_target(host: Host) -> None:
    found = {r.name: r for r in host.load(SERVER).repositories}
    assert list(found) == [
        "pulled.web1", "pulled.web2", "pulled.db", "away.web1", "away.web2", "local",
    ]  # fmt: skip
    assert found["pulled.web2"].location.path == "/srv/backups/web2"
    assert found["pulled.web2"].password == SecretSource(file=f"{host.root}/of-web2")
    assert found["away.web1"].location.text == "sftp:u@h:/web1"
    assert found["away.web1"].identity == SecretSource(file=f"{host.root}/secret")


def test_targets(host: Host) -> None:
    web1, web2, db = host.load(SERVER).targets
    assert (web1.host, web1.user, web1.port, web1.jump) == (
        "web1.example.org", "capkeep-answerer", 22, "",
    )  # fmt: skip
    assert web1.host_keys == (ED25519,)  # without its comment
    assert web1.options == (("Compression", "yes"), ("ConnectTimeout", "20"))
    assert web1.identity == SecretSource(file=f"{host.root}/secret")
    assert (web2.host, web2.user, web2.port) == ("web2", "other", 2222)
    assert web2.host_keys == (ED25519, ECDSA)
    assert (web2.jump, web2.jump_keys) == ("admin@gate.example.org:22", (ECDSA,))
    assert web2.identity == SecretSource(file=f"{host.root}/key-web2")
    assert db.host == "db"


def test_one_key_for_each_target_by_its_name(host: Host) -> None:
    config = host.load(SERVER.replace('identity = { file = "@/secret" }\npar',
                                      'identity = { file = "@/of-{target}" }\npar'))  # fmt: skip
    assert [t.identity.file.rpartition("/")[2] for t in config.targets] == [
        "of-web1", "key-web2", "of-db",
    ]  # fmt: skip
    (host.root / "of-web1").unlink()
    text = SERVER.replace('= { file = "@/secret" }\npar', '= { file = "@/of-{target}" }\npar')
    assert [(m.key, m.problem.rpartition("/")[2]) for m in host.mistakes(text)] == [
        ("pull.identity", "of-web1"), ("repositories.pulled.password", "of-web1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words, found",
    [
        ('"@all"', ["web1", "web2"]),
        ('"@far", "web1"', ["web2", "web1"]),
        ('"web2", "@web"', ["web2", "web1"]),
    ],
)
def test_targets_by_name_and_by_group(host: Host, words: str, found: list[str]) -> None:
    text = SERVER[: SERVER.index("[jobs.bases]")].replace('"@web"]', f"{words}]")
    text = text.replace(f'[targets.db]\nhost-key = "{ED25519}"\n', "")
    assert [j.target for j in host.load(text).jobs] == found


def test_paths_of_targets_are_not_looked_for_here(host: Host) -> None:
    """Job `hosts` includes /srv/backups, which here is full of repositories; `own` has /srv."""
    remarks = host.load(SERVER).remarks
    assert {m.line for m in remarks} == {line_of(SERVER, 'include = ["/etc", "/srv"]')}
    assert len(remarks) == 4  # three repositories of targets, and local
    inside = SERVER.replace('include = ["/etc", "/srv"]', 'include = ["/srv/backups/web2/data"]')
    (mistake,) = host.mistakes(inside)
    assert "lies in repository pulled.web2" in mistake.problem


def test_what_nobody_uses_is_remarked(host: Host) -> None:
    text = SERVER[: SERVER.index("[jobs.bases]")].replace(', copies = { into = ["away"] }', "")
    text = text.replace('copies = { into = ["away"] }\n', "")
    found = {m.key: m for m in host.load(text).remarks}
    assert found["targets.db"].line == line_of(SERVER, "[targets.db]")
    assert "no job pulls from target db" in found["targets.db"].problem
    assert "no job uses repository away" in found["repositories.away.location"].problem


def test_what_is_shown_loads_again(host: Host) -> None:
    for text in (SERVER, ANSWERER):
        config = host.load(text)
        shown = as_toml(config)
        tomllib.loads(shown)
        again = host.load(shown)
        assert (again.jobs, again.repositories, again.targets, again.notify) == (
            config.jobs, config.repositories, config.targets, config.notify,
        )  # fmt: skip
        assert again.parallel_pulls == config.parallel_pulls


def test_a_host_whose_files_are_come_for(host: Host) -> None:
    config = host.load(ANSWERER)
    backup1, backup2, _ = config.repositories
    assert backup1.location.text == "pulled-by:backup1"
    assert not backup1.location.is_local
    assert backup1.pulled_by == f"{ED25519} capkeep@backup1"
    assert backup1.secrets == ()
    assert backup2.secrets == (SecretSource(file=f"{host.root}/secret"),)
    sent, _, own = config.jobs
    # What [defaults] say of times is the server's for one, and holds for the other.
    assert (sent.max_age_seconds, sent.schedule, sent.check) == (0, (), None)
    assert (own.max_age_seconds, own.schedule) == (36 * 3600, ("03:00",))
    assert own.check
    assert sent.exclude == ("*.tmp",)


def test_without_root_there_is_no_login_for_a_server(host: Host) -> None:
    found = host.mistakes(ANSWERER, user_mode=True)
    assert [m.key for m in found] == [
        "repositories.backup1.pulled-by", "repositories.backup2.pulled-by",
    ]  # fmt: skip
    assert all("without root" in m.problem for m in found)
    assert host.load(SERVER, user_mode=True).jobs[0].name == "hosts.web1"


# -- mistakes

PRIVATE = '"""-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n"""'
HOST_KEY = f'host-key = "{ED25519} root@web1"'
CASES = [
    # what is changed, into what, key, problem, hint
    ('["@web"]', '["@wbe"]', "jobs.hosts.targets[0]", "no group 'wbe'", '"@web"'),
    ('["@web"]', '["web"]', "jobs.hosts.targets[0]", "no target 'web'", '"@web"'),
    ('["@web"]', '["@zzz"]', "jobs.hosts.targets[0]", "no group", 'groups = ["zzz"]'),
    ('["@web"]', '["zzz"]', "jobs.hosts.targets[0]", "no target", "[targets.zzz]"),
    ('["@web"]', '["{target}"]', "jobs.hosts.targets[0]", "no target", '"@all"'),
    ('["@web"]', '["@web", "@web"]', "jobs.hosts.targets[1]", "twice", "once"),
    ('["@web"]', "[]", "jobs.hosts.targets", "no target", 'targets = ["NAME"]'),
    ('["@web"]', '["@all"]', "jobs.bases.targets", "already sends what job hosts", "in job hosts"),
    (HOST_KEY, "", "targets.web1.host-key", "anybody could stand in", "target scan web1"),
    (HOST_KEY, f'host-key = ["{ED25519}", "x"]', "targets.web1.host-key[1]", "no public", ".pub"),
    (HOST_KEY, f'host-key = "web1 {ED25519}"', "targets.web1.host-key", "before the key",
     '"ssh-ed25519 …'),
    (HOST_KEY, f"host-key = {PRIVATE}", "targets.web1.host-key", "private key", ".pub"),
    (HOST_KEY, f'host-key = "{ED25519[:-4]}"', "targets.web1.host-key", "not such a public", ".pub"),
    (HOST_KEY, f'host-key = "ssh-rsa {ED25519.split()[1]}"', "targets.web1.host-key",
     "what follows ssh-rsa", ".pub"),
    (f'jump-host-key = "{ECDSA}"\n', "", "targets.web2.jump-host-key", "stand in", "target scan"),
    ('jump = "admin@gate.example.org"\n', "", "targets.web2.jump-host-key", "no host", "jump ="),
    ('"admin@gate.example.org"', '"gate"', "targets.web2.jump", "whom to log in", "user@"),
    ('"admin@gate.example.org"', '"a@-oProxyCommand=x"', "targets.web2.jump", "", "user@"),
    ('"admin@gate.example.org"', '"a@b:0"', "targets.web2.jump", "user@host:port", "user@"),
    ('"admin@gate.example.org"', '"a@b,c@d"', "targets.web2.jump", "one host", "user@"),
    ('"web1.example.org"', '"-oProxyCommand=x"', "targets.web1.host", "not a host", "address"),
    ('"web1.example.org"', '"web1 x"', "targets.web1.host", "not a host", "address"),
    ('"web1.example.org"', '"web1\\u0007"', "targets.web1.host", "not a host", "address"),
    ('"web1.example.org"', '"u@web1"', "targets.web1.host", "a login", "user ="),
    ('"web1.example.org"', '"web1:22"', "targets.web1.host", "not a host", "port ="),
    ('user = "other"', 'user = "-x"', "targets.web2.user", "not a login", "answerer"),
    ('"two.example.org"', '"two x"', "targets.web2.host-name", "not a host name", "host-name"),
    ('"two.example.org"', '""', "targets.web2.host-name", "not a host name", "host-name"),
    ('"two.example.org"', '"{now}"', "targets.web2.host-name", "not a host name", "host-name"),
    ('repositories = ["pulled"]', 'repositories = ["pulled"]\ntags = ["a", "{pid}"]',
     "jobs.hosts.tags[1]", "takes no tag with", "another"),
    ('repositories = ["pulled"]', f'repositories = ["pulled"]\ntags = {list(map(str, range(64)))}',
     "jobs.hosts.tags", "63 tags", "away"),
    ("port = 2222", "port = 0", "targets.web2.port", "at least 1", "1"),
    ("parallel = 3", "parallel = -1", "pull.parallel", "at least 0", "0"),
    ("parallel = 3", 'after = ["off"]', "pull.after[0]", "no hook 'off'", "[hooks.off]"),
    ('groups = ["web"]', 'groups = ["We b"]', "targets.web1.groups[0]", "cannot be", "a-z"),
    ('groups = ["web", "far"]', 'groups = ["web", "all"]', "targets.web2.groups[1]", "by itself",
     "take it away"),
    ("Compression =", "compression =", "targets.web1.options.compression", "no option",
     "did you mean Compression"),
    ("Compression =", "ProxyCommand =", "targets.web1.options.ProxyCommand", "no option", "Ciphers"),
    ('"20"', '"0"', "targets.web1.options.ConnectTimeout", "not what", '"20"'),
    ('"20"', "20", "targets.web1.options.ConnectTimeout", "a text, not a number", "quotes"),
    ('repositories = ["pulled"]', 'repositories = ["local"]', "jobs.hosts.repositories[0]",
     "one place for all", '"/srv/local/{target}"'),
    ('repositories = ["local"]', 'repositories = ["away"]', "jobs.own.repositories[0]",
     "one for each target", '"@all"'),
    ('["local"]\n', '["local"]\ncopies = { into = ["away"] }\n', "jobs.own.copies.into[0]",
     "one for each target", '"@all"'),
    ('location = "/srv/local"\npassword = { file = "@/secret" }',
     'location = "/srv/local"\npassword = { file = "@/{target}" }', "repositories.local.password",
     "one place for all", "into location too"),
    ('repositories = ["pulled"]', 'repositories = ["pulled"]\nhost = "x"', "jobs.hosts.host",
     "of its own", "host-name"),
    ('repositories = ["pulled"]', 'repositories = ["pulled"]\ndumps = ["*"]', "jobs.hosts.dumps",
     "databases", "include"),
    ('location = "/srv/backups/{target}"', 'location = "b2:x/{target}"\nengine-network = true',
     "jobs.hosts.repositories[0]", "would have the credentials", "has a vault"),
    ('"@/of-{target}"', '"@/off-{target}"', "repositories.pulled.password", "off-web1", "install"),
    ('password = { file = "@/of-{target}" }', "", "repositories.pulled.password", "no password",
     'file = "/etc/capkeep/secrets/pulled-{target}"'),
    ("[targets.db]", "[targets.Db]", "targets.Db", "cannot be a name", "a-z"),
    ("[targets.db]", "[targets.db]\nhots = 1", "targets.db.hots", "unknown key", "host"),
]  # fmt: skip


@pytest.mark.parametrize("old, new, key, problem, hint", CASES)
def test_mistakes_on_a_server(
    host: Host, old: str, new: str, key: str, problem: str, hint: str
) -> None:
    text = SERVER.replace(old, new, 1)
    assert text != SERVER
    found = host.mistakes(text)
    (mistake,) = [m for m in found if m.key == key and problem in m.problem and hint in m.hint][
        :1
    ] or [None]
    assert mistake, found
    assert mistake.line >= 1
    assert mistake.file.endswith("capkeep.toml")
    assert not [m for m in found if "hunter2" in m.sentence()]


ANSWERED = 'repositories = ["backup1"]\n'
AS_TARGET = [
    (ANSWERED, f"{ANSWERED}schedule = []\n", "jobs.sent.schedule", "server", "schedule = …"),
    (ANSWERED, f'{ANSWERED}max-age = "1d"\n', "jobs.sent.max-age", "server", "take it away"),
    (ANSWERED, f"{ANSWERED}check = {{}}\n", "jobs.sent.check", "server", "take it away"),
    (ANSWERED, f"{ANSWERED}retention = {{ keep-last = 1 }}\n", "jobs.sent.retention", "server", ""),
    (ANSWERED, f"{ANSWERED}drill = {{}}\n", "jobs.sent.drill", "server", ""),
    (ANSWERED, f'{ANSWERED}copies = {{ into = ["local"] }}\n', "jobs.sent.copies", "server", ""),
    (ANSWERED, f'{ANSWERED}dumps = ["*"]\n', "jobs.sent.dumps", "server", "directory"),
    (ANSWERED, f'{ANSWERED}before = ["x"]\n', "jobs.sent.before", "server", ""),
    (ANSWERED, 'repositories = ["backup1", "local"]\n', "jobs.sent.repositories[0]", "only one",
     "job of its own"),
    (ANSWERED, 'repositories = ["backup2"]\n', "jobs.sealed.repositories[0]", "what job sent",
     "another key"),
    (ANSWERED, f'{ANSWERED}targets = ["x"]\n', "jobs.sent.repositories[0]", "on another host", ""),
    ('["local"]', '["local"]\ncopies = { into = ["backup1"] }', "jobs.own.copies.into[0]",
     "on another host", "copy into"),
    ('pulled-by = "ssh-', 'location = "/x"\npulled-by = "ssh-', "repositories.backup1.location",
     "server", "or pulled-by"),
    ('pulled-by = "ssh-', 'credentials.X_KEY = { file = "@/secret" }\npulled-by = "ssh-',
     "repositories.backup1.credentials", "server", "or pulled-by"),
    ('pulled-by = "ssh-', 'pulled-by = "restrict,command=\\"id\\" ssh-',
     "repositories.backup1.pulled-by", "before the key", "begin with"),
    (f"{ED25519} ", f"{ED25519}\\n{ED25519} ", "repositories.backup1.pulled-by", "one line", ".pub"),
    (f'"{ECDSA}"', f'"{ED25519} other"', "repositories.backup2.pulled-by", "the same key",
     "another key"),
    (f'"{ECDSA}"', '""', "repositories.backup2.pulled-by", "empty", ".pub"),
    (f'"{ECDSA}"', "7", "repositories.backup2.pulled-by", "a text, not a number", "quotes"),
]  # fmt: skip


@pytest.mark.parametrize("old, new, key, problem, hint", AS_TARGET)
def test_mistakes_on_a_target(
    host: Host, old: str, new: str, key: str, problem: str, hint: str
) -> None:
    text = ANSWERER.replace(old, new, 1)
    assert text != ANSWERER
    found = host.mistakes(text)
    assert [m for m in found if m.key == key and problem in m.problem and hint in m.hint], found


def test_all_mistakes_at_once(host: Host) -> None:
    """Each beside all others, of which none makes another one."""
    text = SERVER
    cases = (0, 8, 16, 20, 25, 26, 30, 31, 40)
    for number in cases:
        old, new, *_ = CASES[number]
        assert old in text
        text = text.replace(old, new, 1)
    assert {m.key for m in host.mistakes(text)} == {CASES[n][2] for n in cases}


def test_a_mistake_in_what_all_targets_share_is_told_once(host: Host) -> None:
    for old, new in (
        ('password = { file = "@/of-{target}" }', ""),
        ("options.known-hosts", "options.known-host"),
        ('"sftp:u@h:/{target}"', '"stfp:u@h:/{target}"'),
        (
            'engine = "restic"\nlocation = "/srv/backups',
            'engine = "rustic"\nlocation = "/srv/backups',
        ),
    ):
        places = [(m.line, m.key, m.problem) for m in host.mistakes(SERVER.replace(old, new))]
        assert places
        assert len(set(places)) == len(places)


def test_a_job_with_two_engines(host: Host) -> None:
    more = '[repositories.m]\nengine = "borg"\nlocation = "/m/{target}"\npassword = { file = "@/secret" }\n'
    text = SERVER.replace(
        "[jobs.hosts]", f'{more}[engines.borg]\nprogram = "@/restic"\n[jobs.hosts]'
    )
    text = text.replace('repositories = ["pulled"]', 'repositories = ["pulled", "m"]', 1)
    found = [m for m in host.mistakes(text) if m.key == "jobs.hosts.repositories"]
    assert ["one engine" in m.problem for m in found] == [True]


def test_targets_without_any_key(host: Host) -> None:
    text = SERVER.replace('[pull]\nidentity = { file = "@/secret" }\n', "[pull]\n")
    found = host.mistakes(text)
    assert [m.key for m in found] == ["targets.web1.identity", "targets.db.identity"]
    assert all("[pull] identity =" in m.hint for m in found)


def test_a_mirror_of_each_target(host: Host) -> None:
    """Two jobs name it, and each target has its own."""
    text = SERVER.replace('engine = "restic"\nlocation = "/srv/backups',
                          'engine = "rdiff-backup"\nlocation = "/srv/backups')  # fmt: skip
    text = text.replace('password = { file = "@/of-{target}" }\n', "")
    text = text.replace('copies = { into = ["away"] }\n', "").replace("[jobs.hosts.drill]\n", "")
    text = text.replace("keep-daily = 3", "keep-last = 3")
    text = f'[engines.rdiff-backup]\nprogram = "@/restic"\n{text}'
    assert [r.name for r in host.load(text).repositories][:3] == [
        "pulled.web1", "pulled.web2", "pulled.db",
    ]  # fmt: skip


# -- whatever is written

ANYTHING = st.recursive(
    st.sampled_from(('""', '"x"', '"-x"', "1", "-1", "true", "1.5", '"@/secret"', '"{target}"',
                     '"\\u0000"', '"a b"', f'"{ED25519}"', '"web1"', '"@web"', "[]", "{}")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda found: f"[{', '.join(found)}]"),
        inner.map(lambda found: f"{{ file = {found} }}"),
        inner.map(lambda found: f"{{ Compression = {found} }}"),
    ),
    max_leaves=4,
)  # fmt: skip
TABLES = {
    "targets.web1": syntax.Target, "pull": syntax.Pull, "repositories.pulled": syntax.Repository,
    "jobs.hosts": syntax.Job,
}  # fmt: skip


@st.composite
def written(draw: st.DrawFn) -> str:
    lines = ['[engines.restic]\nprogram = "@/restic"', "[notify.mail]", 'to = "a@b"']
    lines += ['jobs = ["hosts"]', "[targets.web2]"]
    for table, kind in TABLES.items():
        keys = draw(st.sets(st.sampled_from([kebab(f) for f in kind.model_fields]), max_size=5))
        lines += [f"[{table}]", *(f"{key} = {draw(ANYTHING)}" for key in sorted(keys))]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def any_host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("capkeep.config.load.Owner", RootsOwn)
        yield Host(Path(folder).resolve())


@settings(max_examples=150)
@given(text=written())
def test_whatever_is_written_is_a_mistake_or_a_value(any_host: Host, text: str) -> None:
    for mistake in any_host.mistakes(text):
        assert mistake.problem
        assert mistake.hint
        assert mistake.line >= 1 or not mistake.key


@given(tags=st.lists(st.text(max_size=6), max_size=3), name=st.text("aZ0.-_{/ é", max_size=4))
def test_a_target_takes_every_tag_and_name_that_can_be_written(
    any_host: Host, tags: list[str], name: str
) -> None:
    text = SERVER.replace('["pulled"]', f'["pulled"]\ntags = {toml(tags)}', 1)
    try:
        config = any_host.load(text.replace('"two.example.org"', toml(name)))
    except MistakesError:
        return
    job = config.jobs[1]
    request: Message = {"action": "probe", "host": job.host, "tags": list(job.tags)}
    assert request_of(request) == {**request, "options": {}}


def test_options_of_ssh_are_those_that_a_puller_sets() -> None:
    assert {*ssh.OPTIONS} == {*SETTABLE}


def test_tags_are_limited_as_a_target_limits_them() -> None:
    ours = (ssh.MOST_TAGS + 1, ssh.MOST_TAG, ssh.NOT_IN_TAGS | {","})
    assert ours == (TAGS_MOST, NAME_MOST, NOT_IN_NAMES)


PIECES = st.sampled_from([*ED25519.split(), *ECDSA.split(), "\n", " ", "\t", ",", '"', "command=",
                          "restrict", "\0", "é", "-", "AAAA", "ssh-rsa"])  # fmt: skip


@given(st.one_of(st.lists(PIECES, max_size=6).map("".join), st.lists(PIECES, max_size=5).map(" ".join),
                 st.text(max_size=20).map(lambda more: f"{ED25519}{more}")))  # fmt: skip
def test_a_key_is_one_line_that_begins_with_its_kind(text: str) -> None:
    try:
        found = ssh.parse_key(text)
    except ValueMistake:
        return
    assert found.isascii()
    assert found.isprintable()
    assert ssh.plain_key(found) in (ED25519, ECDSA)
    assert found.startswith(("ssh-ed25519 ", "ecdsa-sha2-nistp256 "))


@given(st.text(st.characters(max_codepoint=0x250), max_size=12))
def test_no_host_login_or_jump_is_an_option_or_more_than_one_word(text: str) -> None:
    for check in (ssh.check_host, ssh.check_user, ssh.parse_jump):
        try:
            check(text)
        except ValueMistake:
            continue
        assert text
        assert text.isprintable()
        assert not text.startswith("-")
        assert not set(text) & set(" \t\"'$`;|&%\\/")


@pytest.mark.parametrize("text, told", [
    ("a@b", "a@b:22"), ("a@b:2222", "a@b:2222"), ("a@[::1]:5", "a@[::1]:5"), ("a@[fe80::2]", "a@[fe80::2]:22"),
])  # fmt: skip
def test_jumps(text: str, told: str) -> None:
    assert ssh.parse_jump(text).text == told


@pytest.mark.parametrize("text", ["h", "h.example.org", "192.0.2.1", "::1", "2001:db8::2", "a_b"])
def test_hosts(text: str) -> None:
    ssh.check_host(text)


NAMES = st.lists(
    st.from_regex(r"[a-c0][a-c_-]{0,3}", fullmatch=True), min_size=1, max_size=4, unique=True
)


@pytest.fixture(scope="module")
def server(any_host: Host) -> Config:
    return any_host.load(SERVER)


@given(names=NAMES, target_names=NAMES, kept=NAMES)
def test_no_two_rooms_of_targets_are_called_the_same(
    server: Config, names: list[str], target_names: list[str], kept: list[str]
) -> None:
    job, target, repository = server.jobs[-1], server.targets[0], server.repositories[0]
    targets = tuple(replace(target, name=name) for name in target_names)
    pulls = Pulls(dict.fromkeys(names, targets), frozenset(kept))
    found = [
        one
        for name in names
        for one in jobs(replace(job, name=name, repositories=tuple(kept)), pulls)
    ]
    assert len({one.name for one in found}) == len(names) * len(target_names)
    rooms = [
        reader_name(one, replace(repository, name=name))
        for one in found
        for name in one.repositories
    ]
    assert len(set(rooms)) == len(names) * len(target_names) * len(kept)


# -- a target that keeps its password


def test_a_password_that_the_target_keeps(host: Host) -> None:
    found = {r.name: r for r in host.load(KEPT).repositories}
    kept, usual = found["pulled.web1"], found["local"]
    assert kept.target_keeps_password
    assert (kept.password, kept.secrets) == (SecretSource(), ())
    assert not usual.target_keeps_password
    explicit = SERVER.replace('"@/of-{target}" }', '"@/of-{target}" }\npassword-kept-by = "server"')
    assert not any(r.target_keeps_password for r in host.load(explicit).repositories)
    assert tomllib.loads(as_toml(host.load(KEPT)))["repositories"]["pulled"] == {
        **tomllib.loads(KEPT)["repositories"]["pulled"],
        **tomllib.loads(as_toml(host.load(KEPT)))["repositories"]["pulled"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "was, now, key, words",
    [
        ('password-kept-by = "target"', 'password-kept-by = "nobody"',
         "repositories.pulled.password-kept-by", "'server' or 'target'"),
        ('password-kept-by = "target"', 'password-kept-by = "target"\npassword = { file = "@/secret" }',
         "repositories.pulled.password", "the target keeps the password, and nobody here has one"),
        ('password-kept-by = "target"', 'password-kept-by = "target"\nkey-exported = true',
         "repositories.pulled.key-exported", "no key here"),
        ('password-kept-by = "target"',
         'password-kept-by = "target"\nkeeper-credentials.X_ID = { file = "@/secret" }',
         "repositories.pulled.keeper-credentials", "no keeper here"),
        ('location = "/srv/local"\npassword = { file = "@/secret" }',
         'location = "/srv/local"\npassword-kept-by = "target"',
         "repositories.local.password-kept-by", "it has no {target}"),
        ('schedule = ["03:00"]\n', 'schedule = ["03:00"]\ncopies = { into = ["away"] }\n',
         "jobs.hosts.copies", "nobody here can open pulled"),
        ('schedule = ["03:00"]\n', 'schedule = ["03:00"]\ndrill = {}\n',
         "jobs.hosts.drill", "nobody here can open pulled"),
        ('schedule = ["03:00"]\n', 'schedule = ["03:00"]\ncheck = { after-backup = true }\n',
         "jobs.hosts.check", "nobody here can open pulled"),
        ('schedule = ["03:00"]\n', 'schedule = ["03:00"]\nretention = { keep-last = 3 }\n',
         "jobs.hosts.retention", "nobody here can open pulled"),
        ('repositories = ["pulled"]\ninclude = ["/etc"', 'repositories = ["pulled", "away"]\ninclude = ["/etc"',
         "jobs.hosts.repositories[1]", "seals all that it sends"),
        ("[targets.db]\n", '[targets.db]\nway = "sftp"\n',
         "jobs.bases.repositories[0]", "the engine runs here"),
    ],
)  # fmt: skip
def test_what_needs_a_password_here_cannot_be(
    host: Host, was: str, now: str, key: str, words: str
) -> None:
    text = KEPT.replace(was, now, 1)
    assert text != KEPT
    found = host.mistakes(text)
    assert [m.key for m in found] == [key], found
    assert words in found[0].problem
    assert found[0].line
    assert found[0].hint


def test_a_mirror_has_no_password_to_be_kept(host: Host) -> None:
    text = KEPT.replace('[repositories.pulled]\nengine = "restic"',
                        '[repositories.pulled]\nengine = "rdiff-backup"')  # fmt: skip
    text = text.replace("[pull]", '[engines.rdiff-backup]\nprogram = "@/restic"\n[pull]')
    found = {m.key: m.problem for m in host.mistakes(text)}
    assert found["repositories.pulled.password-kept-by"] == "rdiff-backup knows no password"


def test_a_copy_cannot_be_made_for_whoever_keeps_the_password(host: Host) -> None:
    text = KEPT.replace('repositories = ["pulled"]\ninclude = ["/etc"',
                        'repositories = ["away"]\ncopies = { into = ["pulled"] }\ninclude = ["/etc"')  # fmt: skip
    (mistake,) = host.mistakes(text)
    assert mistake.key == "jobs.hosts.copies.into[0]"
    assert "a copy is made with one that is here" in mistake.problem


def test_what_is_usual_elsewhere_falls_away_for_it(host: Host) -> None:
    defaults = (
        "[defaults]\ncheck = { after-backup = true }\nretention = { keep-last = 3 }\ndrill = {}\n"
    )
    config = host.load(KEPT.replace("[pull]", f"{defaults}[pull]"))
    sealed, own = config.jobs[0], config.jobs[-1]
    assert (sealed.check, sealed.retention, sealed.drill) == (None, None, None)
    assert all((own.check, own.retention, own.drill))


def test_on_a_target_nobody_else_could_keep_it(host: Host) -> None:
    text = ANSWERER.replace(
        'pulled-by = "' + ED25519, 'password-kept-by = "target"\npulled-by = "' + ED25519
    )
    (mistake,) = host.mistakes(text)
    assert mistake.key == "repositories.backup1.password-kept-by"
