"""The configuration: what is right loads, and every mistake is told with its line and remedy."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from capkeep.config.example import EXAMPLE
from capkeep.config.load import load
from capkeep.config.mistakes import Mistake, MistakesError
from capkeep.config.model import Config
from capkeep.config.schema import schema
from capkeep.config.settings import as_toml
from capkeep.config.sources import Owner
from capkeep.config.syntax import Document, Job, JobDefaults, Pull, Repository, Target
from capkeep.engines import ENGINES
from capkeep.errors import EXIT_CONFIG, ConfigError


class Etc:
    """A configuration directory of the calling user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.program = self.file("restic", "#!/bin/sh\n", 0o755)
        self.secret = self.file("secret", "a password\n", 0o600)

    def file(self, name: str, text: str, mode: int = 0o644) -> str:
        path = self.root / name
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    def main(self, text: str) -> None:
        self.file("capkeep.toml", text.replace('"@', f'"{self.root}'))

    def good(self, more: str = "", job: str = "") -> None:
        self.main(GOOD.replace("#JOB", job) + more)

    def load(self) -> Config:
        return load(str(self.root), user_mode=True)

    def mistakes(self) -> tuple[Mistake, ...]:
        with pytest.raises(MistakesError) as caught:
            self.load()
        assert caught.value.exit_code == EXIT_CONFIG
        for mistake in caught.value.mistakes:
            assert mistake.sentence() in str(caught.value)
        return caught.value.mistakes

    def mistake(self) -> Mistake:
        (only,) = self.mistakes()
        return only


GOOD = """\
[engines.restic]
program = "@/restic"
[repositories.r]
engine = "restic"
location = "@/repo"
password = { file = "@/secret" }
[jobs.j]
repositories = ["r"]
include = ["/etc"]
#JOB
"""


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    tmp_path.chmod(0o755)
    return Etc(tmp_path.resolve())


def test_a_good_configuration(etc: Etc) -> None:
    etc.good()
    config = etc.load()
    (repository,), (job,) = config.repositories, config.jobs
    assert repository.location.path == f"{etc.root}/repo"
    assert repository.program == etc.program
    assert job.include == ("/etc",)
    assert (job.canary, job.max_shrink_percent, job.timeout_seconds) == (True, 50, 86400)
    assert config.host.user_prefix == config.host.group == "capkeep"
    assert config.limits.memory_bytes is None
    assert config.remarks == ()


def test_drop_ins_add_to_the_main_file_in_order(etc: Etc) -> None:
    etc.good()
    etc.file("conf.d/20-b.toml", '[jobs.b]\ninclude = ["/b"]\n')
    etc.file("conf.d/10-a.toml", '[defaults]\nrepositories = ["r"]\ntags = ["all"]\n')
    etc.file("conf.d/ignored.toml~", "not toml")
    config = etc.load()
    assert [j.name for j in config.jobs] == ["j", "b"]
    assert config.jobs[1].repositories == ("r",)
    assert [j.tags for j in config.jobs] == [("all",), ("all",)]
    assert [os.path.basename(f) for f in config.files] == ["capkeep.toml", "10-a.toml", "20-b.toml"]


def test_drop_ins_alone_are_enough(etc: Etc) -> None:
    etc.good()
    (etc.root / "conf.d").mkdir(mode=0o755)
    (etc.root / "capkeep.toml").rename(etc.root / "conf.d/all.toml")
    assert len(etc.load().jobs) == 1


def test_a_job_overrides_defaults(etc: Etc) -> None:
    etc.good(
        '[defaults]\nmax-age = "36h"\ntimeout = "2h"\ncanary = false\nexclude = ["a"]\n'
        '[jobs.k]\nrepositories = ["r"]\ninclude = ["/x/"]\ncanary = true\nexclude = []\n'
        '[limits]\nmemory = "1G"\nprocesses = 99\nfree-space = "0"\n'
        '[host]\nuser-prefix = "backup"\n',
        job='timeout = "3h"',
    )
    config = etc.load()
    j, k = config.jobs
    assert (j.canary, k.canary) == (False, True)
    assert (j.exclude, k.exclude) == (("a",), ())
    assert (j.timeout_seconds, k.timeout_seconds) == (3 * 3600, 2 * 3600)
    assert j.max_age_seconds == 36 * 3600
    assert k.include == ("/x",)
    assert (config.limits.memory_bytes, config.limits.free_space_bytes) == (1 << 30, 0)
    assert config.host.group == "backup"


def test_directives_that_may_be_missing_are_named(etc: Etc) -> None:
    etc.good('[host]\naccept-missing = ["PrivateNetwork", "PrivateIPC", "PrivateNetwork"]\n')
    assert etc.load().host.accept_missing == ("PrivateNetwork", "PrivateIPC")


def test_what_makes_rooms_unprivileged_cannot_be_done_without(etc: Etc) -> None:
    etc.good(
        '[host]\naccept-missing = [\n  "NoNewPrivileges",\n  "PrivateIPC",\n  "privatnetwork",\n]\n'
    )
    found = etc.mistakes()
    assert [m.key for m in found] == ["host.accept-missing[0]", "host.accept-missing[2]"]
    assert found[1].line == found[0].line + 2
    assert "no directive that rooms may do without" in found[0].problem
    assert found[0].hint.startswith("known here: BindReadOnlyPaths")
    assert found[1].hint == "did you mean PrivateNetwork?"


def test_list_files(etc: Etc) -> None:
    etc.file("paths", "# what\n/etc/x\n\n  /srv/y  \r\n")
    etc.file("ex", "**/.cache\n# no\n*.tmp\n")
    etc.good(job='include-from = ["paths"]\nexclude-from = ["@/ex"]\nexclude = ["q"]')
    job = etc.load().jobs[0]
    assert job.include == ("/etc", "/etc/x", "/srv/y")
    assert job.exclude == ("q", "**/.cache", "*.tmp")


BORG_OVER_SSH = """
[engines.borg]
program = "@/restic"
[repositories.far]
engine = "borg"
location = "ssh://u@h.example.org:23/./host"
password = { file = "@/secret" }
options.identity = { file = "@/secret" }
options.known-hosts = "@/known_hosts"
options.remote-path = "borg-1.4"
keeper-credentials.identity = { file = "@/secret" }
[jobs.k]
repositories = ["far"]
include = ["/x"]
"""


def test_borg_over_ssh(etc: Etc) -> None:
    etc.file("known_hosts", "h ssh-ed25519 AAAA\n")
    etc.good(BORG_OVER_SSH)
    far = etc.load().repositories[-1]
    assert (far.location.path, far.port, far.remote_path) == ("/./host", 23, "borg-1.4")
    assert [name for name, _ in far.keeper_credentials] == ["identity"]


@pytest.mark.parametrize(
    "old, new, key, problem, hint",
    [
        ('"borg-1.4"', '"borg --x"', "options.remote-path", "name or path of one", '"borg-1.4"'),
        ('options.known-hosts = "@/known_hosts"', "", "options.known-hosts", "host key", "-p 23 h."),
        ("keeper-credentials.identity", "credentials.identity", "credentials.identity",
         "environment variables", "options.identity"),
        ("keeper-credentials.identity", "credentials.X_KEY", "credentials.X_KEY",
         "no variable goes along", "keeper-credentials.identity"),
        ('"ssh://u@h.example.org:23/./host"', '"/srv/r"', "keeper-credentials.identity",
         "environment variables", "take it away"),
        ('"ssh://u@h.example.org:23/./host"', '"sftp:u@h:/x"', "location",
         "no repositories at sftp", '"ssh://user@host/path"'),
        ("options.remote-path", "environment.BORG_REMOTE_PATH", "environment.BORG_REMOTE_PATH",
         "by capkeep itself", "options.remote-path"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_borg_over_ssh_is_said(
    etc: Etc, old: str, new: str, key: str, problem: str, hint: str
) -> None:
    etc.file("known_hosts", "h ssh-ed25519 AAAA\n")
    etc.good(BORG_OVER_SSH.replace(old, new))
    with pytest.raises(MistakesError) as raised:
        etc.load()
    found = [m for m in raised.value.mistakes if m.key == f"repositories.far.{key}"]
    assert [m for m in found if problem in m.problem and hint in m.hint], raised.value


def test_remotes(etc: Etc) -> None:
    etc.file("known_hosts", "h ssh-ed25519 AAAA\n")
    etc.good("""
[repositories.ssh]
engine = "restic"
location = "sftp://u@h:2222//srv"
password = { command = "@/restic --show 'a b'" }
options.identity = { file = "@/secret" }
options.known-hosts = "@/known_hosts"
[repositories.s3]
engine = "restic"
location = "s3:http://127.0.0.1:9000/bucket"
password = { command = ["@/restic"] }
credentials.AWS_ACCESS_KEY_ID = { file = "@/secret" }
environment.RCLONE_CONFIG_X_TYPE = "s3"
options.region = "eu"
options.ca-file = "@/known_hosts"
[repositories.b2]
engine = "restic"
location = "b2:bucket"
engine-network = true
password = { file = "@/secret" }
[jobs.k]
repositories = ["ssh", "s3", "b2"]
include = ["/x"]
""")
    _, ssh, s3, b2 = etc.load().repositories
    assert ssh.port == 2222
    assert ssh.password.command == (etc.program, "--show", "a b")
    assert ssh.identity is not None
    assert ssh.identity.file == etc.secret
    assert dict(s3.credentials)["AWS_ACCESS_KEY_ID"].file == etc.secret
    assert (s3.region, s3.environment) == ("eu", (("RCLONE_CONFIG_X_TYPE", "s3"),))
    assert b2.engine_network


def test_remarks(etc: Etc) -> None:
    (etc.root / "data").mkdir()
    (etc.root / "link").symlink_to(etc.root / "data")
    etc.good(
        '[repositories.spare]\nengine = "restic"\nlocation = "/spare"\npassword = { file = "@/secret" }\n',
        job=f'include-from = ["list"]\n# {etc.root}',
    )
    etc.file("list", f"{etc.root}\n{etc.root}/link\n")
    remarks = {(os.path.basename(r.file), r.line): r.problem for r in etc.load().remarks}
    assert "is hidden from the reader" in remarks["list", 1]
    assert ("list", 2) not in remarks  # its target is included
    assert "no job uses repository spare" in remarks["capkeep.toml", 14]
    etc.file("list", f"{etc.root}/link\n")
    (link,) = [r for r in etc.load().remarks if r.file.endswith("list")]
    assert "symbolic link" in link.problem
    assert link.hint.endswith(f"{etc.root}/data")


EVERY_MISTAKE = """\
[engines.restic]
program = "@/restic"
[engines.rustic]
program = "/x"

[repositories.a]
engine = "restik"
location = "backup"
pasword = { file = "@/secret" }

[repositories.b]
engine = "rest"
location = "b2:bucket"
password = "hunter2"
credentials.B2_KEY = "hunter3"
credentials.1X = { file = "@/missing" }
credentials.RESTIC_PASSWORD = { file = "@/open" }
environment.AZURE_ACCOUNT_SAS = "hunter4"
environment.N = 5
options.port = 22
options.prot = 22

[repositories.c]
engine = "restic"
location = "sftp:u@h:/x"
password = { file = "@/empty" }
engine-network = true
identity = { file = "@/secret" }

[repositories.Bad]
engine = "restic"
location = "/srv/r"
password = { fil = "x" }

[repositories.d]
engine = "restic"
location = "/srv/r/"
password = { command = "pass x" }

[repositories.e]
engine = 5
password = { file = "@", credential = "x" }
location = "rest:https://u:hunter5@h/"

[jobs.one]
include = ["/etc", "home", "~/x",
  "/proc/sys", 7,
  "/etc/", "/srv/r/data", "/a/../b"]
repositories = ["a", "z", "cc", "a"]
exclude = ["[a"]
may-miss = ["cache", "/x**y"]
allow-empty = ["/etcc"]
tags = ["a,b"]
timeout = "soon"
max-age = 36
max-shrink = "half"
canary = "yes"
one-file-systems = true
exclude-from = ["nolist"]
include-from = ["list"]
schedule = "daily"

[jobs.two]

[jobs.three]
repositories = "a"
include = []

[defaults]
timout = "1h"
max-age = "1h"

[host]
user-prefix = "Capkeep"
[limits]
memory = 5
processes = 1
[notifications.mail]
to = "x"
"""

EXPECTED = [
    # line, key, part of the problem, part of the hint
    (3, "engines.rustic", "unknown key", "restic"),
    (7, "repositories.a.engine", "restik", '"restic"'),
    (8, "repositories.a.location", "relative", "absolute"),
    (6, "repositories.a.password", "no password", "secrets/a"),
    (9, "repositories.a.pasword", "unknown key", "password"),
    (12, "repositories.b.engine", "no engine", "restic"),
    (13, "repositories.b.location", "network", "engine-network = true"),
    (14, "repositories.b.password", "must not be written", "{ file ="),
    (15, "repositories.b.credentials.B2_KEY", "must not be written", "{ file ="),
    (16, "repositories.b.credentials.1X", "environment variable", ""),
    (16, "repositories.b.credentials.1X", "no secret file", "install -m 600"),
    (17, "repositories.b.credentials.RESTIC_PASSWORD", "by capkeep itself", "password"),
    (17, "repositories.b.credentials.RESTIC_PASSWORD", "open to others (mode 0644)", "chmod 600"),
    (18, "repositories.b.environment.AZURE_ACCOUNT_SAS", "looks like", "credentials.AZURE_ACC"),
    (19, "repositories.b.environment.N", "a text, not a number", "quotes"),
    (20, "repositories.b.options.port", "nothing for b2", "take it away"),
    (21, "repositories.b.options.prot", "unknown key", "port"),
    (26, "repositories.c.password", "empty", "write the secret"),
    (27, "repositories.c.engine-network", "through the vault", "away"),
    (28, "repositories.c.identity", "unknown key", "options.identity"),
    (23, "repositories.c.options.identity", "private key", "options.identity ="),
    (23, "repositories.c.options.known-hosts", "host key", "ssh-keyscan h"),
    (30, "repositories.Bad", "cannot be a name", "a-z"),
    (33, "repositories.Bad.password", "does not know fil", "{ file ="),
    (37, "repositories.d.location", "same place", "one name"),
    (38, "repositories.d.password", "not an absolute path", "{ file ="),
    (41, "repositories.e.engine", "a text, not a number", "quotes"),
    (42, "repositories.e.password", "exactly one", "{ file ="),
    (43, "repositories.e.location", "carries a user or password", "RESTIC_REST_PASSWORD"),
    (46, "jobs.one.include[1]", "not an absolute path", "/home"),
    (46, "jobs.one.include[2]", "not an absolute path", ""),
    (47, "jobs.one.include[3]", "shows processes", "take it away"),
    (47, "jobs.one.include[4]", "a text, not a number", "quotes"),
    (48, "jobs.one.include[5]", "included twice", "once"),
    (48, "jobs.one.include[6]", "in repository Bad", "take it away"),
    (48, "jobs.one.include[7]", "plain path", "/b"),
    (49, "jobs.one.repositories[1]", "no repository 'z'", "define"),
    (49, "jobs.one.repositories[2]", "no repository 'cc'", '"c"'),
    (49, "jobs.one.repositories[3]", "named twice", "once"),
    (50, "jobs.one.exclude[0]", "[ without ]", "brackets"),
    (51, "jobs.one.may-miss[0]", "neither absolute", "**/cache"),
    (51, "jobs.one.may-miss[1]", "** inside a name", "alone"),
    (52, "jobs.one.allow-empty[0]", "not one of the job's includes", '"/etc"'),
    (53, "jobs.one.tags[0]", "cannot be a tag", "commas"),
    (54, "jobs.one.timeout", "not a duration", "36h"),
    (55, "jobs.one.max-age", "a duration", "36h"),
    (56, "jobs.one.max-shrink", "not a percentage", "50%"),
    (57, "jobs.one.canary", "true or false, not a text", "without quotes"),
    (58, "jobs.one.one-file-systems", "unknown key", "one-file-system?"),
    (59, "jobs.one.exclude-from[0]", "cannot be read", "make the file"),
    (61, "jobs.one.schedule", "must be a list, not a text", "write"),
    (63, "jobs.two.repositories", "no repository", '["a"]'),
    (63, "jobs.two.include", "includes nothing", "include ="),
    (66, "jobs.three.repositories", "a list, not a text", "["),
    (67, "jobs.three.include", "includes nothing", "include ="),
    (70, "defaults.timout", "unknown key", "timeout"),
    (74, "host.user-prefix", "cannot be a name", "a-z"),
    (76, "limits.memory", "a size", "8GiB"),
    (77, "limits.processes", "at least 16", "16"),
    (78, "notifications", "unknown key", "known here"),
]


def test_every_mistake_at_once_each_with_its_line(etc: Etc) -> None:
    etc.file("open", "x", 0o644)
    etc.file("empty", "", 0o600)
    listed = etc.file("list", "# paths\n/usr\nrelative\n")
    etc.main(EVERY_MISTAKE)
    found = etc.mistakes()
    left = [m for m in found if m.file != listed]
    missing = []
    for line, key, problem, hint in EXPECTED:
        hits = [
            m
            for m in left
            if (m.line, m.key) == (line, key) and problem in m.problem and hint in m.hint
        ]
        if len(hits) == 1:
            left.remove(hits[0])
        else:
            missing.append((line, key, problem, hint))
    assert missing == [], left
    assert left == []
    (in_list,) = [m for m in found if m.file == listed]
    assert (in_list.line, in_list.key) == (3, "jobs.one.include-from[0]")
    text = "\n".join(m.sentence() for m in found)
    assert "hunter" not in text
    assert all(m.hint for m in found)


@pytest.mark.parametrize(
    "text,line",
    [
        ("[jobs.x]\ninclude = [/etc]\n", 2),
        ('a = 1\nb = "open\n', 2),
        ("[a]\nx = 1\n[a]\ny = 2\n", 3),
        ("x = [1,\n\n", 3),
        ("x = \n", 1),
    ],
)
def test_syntax_errors_have_a_line_and_hide_no_other_file(etc: Etc, text: str, line: int) -> None:
    etc.main(text)
    other = etc.file("conf.d/x.toml", "[jobs.y]\nbogus = 1\nrepositories = ['r']\ninclude = ['/a']")
    first, second = etc.mistakes()
    assert (first.line, second.line) == (line, 2)
    assert first.problem.startswith("not TOML")
    assert second.file == other  # and nothing about a repository that the broken file may define


def test_bytes_that_are_not_utf8(etc: Etc) -> None:
    etc.good()
    with open(etc.root / "capkeep.toml", "ab") as file:
        file.write(b"# gr\xfcn\n")
    assert (etc.mistake().line, etc.mistake().problem) == (11, "not UTF-8")


def test_two_files_may_not_define_the_same(etc: Etc) -> None:
    etc.good("[defaults]\ncanary = true\n")
    etc.file("conf.d/a.toml", '\n[jobs.j]\nrepositories = ["r"]\ninclude = ["/x"]\n')
    etc.file("conf.d/b.toml", "[defaults]\ncanary = false\n[repositories.r]\nengine='restic'\n")
    main = etc.root / "capkeep.toml"
    found = {(os.path.basename(m.file), m.line, m.key): m.problem for m in etc.mistakes()}
    assert found == {
        ("a.toml", 2, "jobs.j"): f"job j is also defined at {main}:7",
        ("b.toml", 2, "defaults.canary"): f"is already set at {main}:12",
        ("b.toml", 3, "repositories.r"): f"repository r is also defined at {main}:3",
    }


def test_rooms_must_be_told_apart(etc: Etc) -> None:
    repository = 'engine="restic"\npassword={file="@/secret"}\n'
    etc.main(
        f'[engines.restic]\nprogram="@/restic"\n[repositories.c]\nlocation="/c"\n{repository}'
        f'[repositories.b-c]\nlocation="/b-c"\n{repository}'
        '[jobs.a-b]\nrepositories=["c"]\ninclude=["/x"]\n'
        '[jobs.a]\nrepositories=["b-c"]\ninclude=["/x"]\n'
    )
    assert (etc.mistake().key, etc.mistake().line) == ("jobs.a", 14)


def test_no_configuration(etc: Etc) -> None:
    assert "capkeep config example" in etc.mistake().hint
    with pytest.raises(ConfigError, match="no configuration"):
        load(str(etc.root / "nowhere"), user_mode=True)


def test_an_empty_configuration(etc: Etc) -> None:
    etc.main("")
    assert [m.problem for m in etc.mistakes()] == ["no job is defined", "no repository is defined"]


@pytest.mark.parametrize(
    "text", ["jobs = 1", "jobs.x = 1", "[[jobs]]", "defaults = 'x'", "host = []"]
)
def test_tables_of_the_wrong_kind(etc: Etc, text: str) -> None:
    etc.main(f"{text}\n{GOOD}" if "jobs" not in text else text)
    assert "must be a table" in [m.problem for m in etc.mistakes()]


@pytest.mark.parametrize("name", ["capkeep.toml", "list", "conf.d/x.toml"])
def test_files_that_others_can_write(etc: Etc, name: str) -> None:
    etc.file("list", "/usr\n")
    etc.file("conf.d/x.toml", "")
    etc.good(job='include-from = ["list"]')
    (etc.root / name).chmod(0o664)
    assert "can be written by others (mode 0664)" in etc.mistake().problem
    assert "chmod go-w" in etc.mistake().hint


@pytest.mark.parametrize("folder", [".", "conf.d"])
def test_directories_that_others_can_write(etc: Etc, folder: str) -> None:
    etc.good()
    etc.file("conf.d/x.toml", "")
    (etc.root / folder).chmod(0o777)
    assert "can be written by others" in etc.mistake().problem


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644])
def test_a_secret_is_its_owners_alone(etc: Etc, mode: int) -> None:
    etc.good()
    os.chmod(etc.secret, mode)
    assert f"open to others (mode {mode:04o})" in etc.mistake().problem
    assert etc.mistake().line == 6


def test_a_secret_must_be_a_file(etc: Etc) -> None:
    (etc.root / "folder").mkdir()
    etc.main(GOOD.replace("@/secret", "@/folder"))
    assert "not a regular file" in etc.mistake().problem


def test_drop_ins_that_are_no_files(etc: Etc) -> None:
    etc.good()
    folder = etc.root / "conf.d"
    folder.mkdir(mode=0o755)
    (folder / "dir.toml").mkdir()
    (folder / "gone.toml").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.toml")
    problems = [m.problem for m in etc.mistakes()]
    assert problems == [
        "cannot be read: Is a directory",
        "cannot be read: No such file or directory",
        "is not a regular file",
    ]


def test_a_credential_must_exist(etc: Etc) -> None:
    etc.main(GOOD.replace('{ file = "@/secret" }', '{ credential = "capkeep-no-such-thing" }'))
    assert "systemd-creds encrypt --name=capkeep-no-such-thing" in etc.mistake().hint


def test_a_credential_is_not_a_path(etc: Etc) -> None:
    etc.main(GOOD.replace('{ file = "@/secret" }', '{ credential = "../shadow" }'))
    assert "not a credential's name" in etc.mistake().problem


def state(uid: int, mode: int) -> os.stat_result:
    return os.stat_result((0o100000 | mode, 1, 1, 1, uid, 0, 1, 0, 0, 0))


def test_in_system_mode_all_belongs_to_root() -> None:
    owner = Owner(user_mode=False)
    assert not owner.unsafe_secret(state(0, 0o600))
    assert "uid 1000, not to root" in owner.unsafe_secret(state(1000, 0o600))
    assert "uid 1000, not to root" in owner.unsafe_to_read(state(1000, 0o644))
    assert not owner.unsafe_to_read(state(0, 0o644))


def test_a_repository_behind_a_link_is_the_real_directory(etc: Etc) -> None:
    (etc.root / "real").mkdir()
    (etc.root / "repo").symlink_to("real")
    etc.good()
    assert etc.load().repositories[0].location.path == f"{etc.root}/real"


def test_root_may_be_included(etc: Etc) -> None:
    etc.main(GOOD.replace('"/etc"', '"/"'))
    assert etc.load().jobs[0].include == ("/",)


@pytest.mark.parametrize("path", ["/proc", "/sys/kernel", "/dev/", "/run/user/0"])
def test_pseudo_file_systems(etc: Etc, path: str) -> None:
    etc.main(GOOD.replace('"/etc"', f'"{path}"'))
    assert "is not on a disk" in etc.mistake().problem


def test_no_engine(etc: Etc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capkeep.config.repositories.PROGRAM_FOLDERS", (str(etc.root / "nothing"),))
    etc.main(GOOD.replace('program = "@/restic"', ""))
    assert "apt-get install restic" in etc.mistake().hint
    monkeypatch.setattr("capkeep.config.repositories.PROGRAM_FOLDERS", (str(etc.root),))
    assert etc.load().repositories[0].program == etc.program


@pytest.mark.parametrize("program", ["restic", "@/nothing", "@/secret"])
def test_not_an_engine(etc: Etc, program: str) -> None:
    etc.main(GOOD.replace("@/restic", program))
    assert (etc.mistake().line, etc.mistake().key) == (2, "engines.restic.program")


def test_settings_say_where_they_come_from(etc: Etc) -> None:
    etc.good('[defaults]\nmax-age = "36h"\n')
    config = etc.load()
    settings = config.settings
    assert settings["jobs.j.max-age"].value == "1d 12h"
    place = settings["jobs.j.max-age"].place
    assert place is not None
    assert (place.line, place.key) == (12, "defaults.max-age")
    assert settings["jobs.j.timeout"].place is None
    text = as_toml(config)
    assert f'password = {{ file = "{etc.secret}" }}  # {etc.root}/capkeep.toml:6' in text
    assert "a password" not in text
    assert 'timeout = "1d"  # built in' in text
    shown = tomllib.loads(text)
    etc.file("capkeep.toml", text)
    assert etc.load().jobs == config.jobs
    assert shown["repositories"]["r"]["engine"] == "restic"


def test_the_example_loads(etc: Etc) -> None:
    text = EXAMPLE.replace("/etc/capkeep/secrets/local", etc.secret)
    etc.file("capkeep.toml", f'{text}\n[engines.restic]\nprogram = "{etc.program}"\n')
    config = etc.load()
    assert [j.name for j in config.jobs] == ["system"]
    assert config.jobs[0].max_age_seconds == 36 * 3600


def test_what_the_example_has_in_comments_loads_too(etc: Etc) -> None:
    lines = [
        line[2:] if line.startswith("# ") and (" = " in line or line.startswith("# [")) else line
        for line in EXAMPLE.split("\n")
        if not line.startswith("# Other")
    ]
    text = "\n".join(lines).replace(
        '{ credential = "s3-key" }', '{ file = "/etc/capkeep/secrets/x" }'
    )
    for name in (
        "local", "offsite", "s3-id", "x", "nas", "id_ed25519", "mail", "healthchecks-url",
    ):  # fmt: skip
        text = text.replace(f'/etc/capkeep/secrets/{name}"', f'{etc.secret}"')
    text = text.replace("/etc/capkeep/known_hosts", etc.file("known_hosts", "h k\n"))
    etc.file("excludes.txt", "*.tmp\n")
    etc.file("capkeep.toml", f'{text}\n[engines.restic]\nprogram = "{etc.program}"\n')
    config = etc.load()
    assert [r.name for r in config.repositories] == ["local", "offsite", "nas"]
    assert [n.kind for n in config.notify] == ["mail", "healthchecks"]
    assert config.jobs[0].exclude[-1] == "*.tmp"


def test_the_schema_has_every_key_and_what_it_means() -> None:
    found = json.loads(json.dumps(schema()))
    assert set(found["properties"]) == set(Document.model_fields)
    definitions = found["$defs"]
    for kind in (Repository, Job, JobDefaults, Target, Pull):
        table = definitions[kind.__name__]
        assert table["additionalProperties"] is False
        assert all(p.get("description") for p in table["properties"].values())
        assert not [k for k in table["properties"] if "_" in k]
    assert definitions["Repository"]["required"] == ["engine"]
    one_of = definitions["Repository"]["oneOf"]
    assert [other["required"] for other in one_of] == [["location"], ["pulled-by"]]
    assert definitions["Job"]["properties"]["timeout"]["type"] == "string"


def test_the_reference_names_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs/reference/config.md").read_text()
    definitions = json.loads(json.dumps(schema()))["$defs"].values()
    keys = {key for d in definitions for key in d["properties"]}
    assert {k for k in keys if f"`{k}`" not in text and f".{k}`" not in text} <= set(ENGINES)
