"""What a server writes for its targets: texts that nothing in a name or a path can get out of."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capkeep.config.mistakes import MistakesError
from capkeep.config.model import TargetConfig
from capkeep.config.syntax import NAME_PATTERN
from capkeep.errors import UsageError
from capkeep.host import admin_ssh, enroll, scan
from capkeep.host.admin_ssh import Way
from capkeep.host.enroll_script import Carried, Enrolment, Ground, drop_in, plain_name, script
from capkeep.host.scan import Word
from capkeep.host.ssh_keys import parse
from capkeep.report.style import PLAIN
from capkeep.report.targets import key_lines
from capkeep.values import SecretSource
from tests.unit.pulled import ECDSA, ED25519, KEPT, SERVER, Host, RootsOwn
from tests.unit.test_ssh_keys import KEY

OTHER = KEY[:-4] + "AAAA"
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
HOSTILE = (
    "'; touch {0}; '", "$(touch {0})", "`touch {0}`", '"; touch {0}; "', "\n touch {0}\n",
    "END-OF-CAPKEEP\ntouch {0}", "\\", "'\\''", "%s%n", "-rf", "a'\n]\n[hooks.x]\ncommand = ['x']",
)  # fmt: skip


def target_config() -> TargetConfig:
    return TargetConfig(
        name="web1", host="web1.example.org", host_name="web1", user="capkeep-answerer",
        host_keys=(KEY,), identity=SecretSource(file="/key"), port=2222,
    )  # fmt: skip


def enrolment(**changes: object) -> Enrolment:
    made = Enrolment(
        name="backup1", server="backup1.example.org", target="web1", job="backup1-hosts",
        engine="restic", key=f"{KEY} capkeep@backup1", include=("/etc",),
    )  # fmt: skip
    return made._replace(**changes)


@given(st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=4), st.booleans(), TEXTS)
def test_the_targets_part_says_what_the_servers_says(
    include: list[str], exclude: list[str], one: bool, server: str
) -> None:
    made = enrolment(
        include=tuple(include), exclude=tuple(exclude), one_file_system=one, server=server,
        canary=not one,
    )  # fmt: skip
    read = tomllib.loads(drop_in(made))
    assert read["repositories"] == {
        "backup1": {"engine": "restic", "pulled-by": f"{KEY} capkeep@backup1"}
    }
    job = read["jobs"].pop("backup1-hosts")
    assert not read["jobs"]
    assert read.keys() == {"repositories", "jobs"}
    assert (job.get("include", []), job.get("exclude", [])) == (include, exclude)
    assert (job.get("one-file-system", False), job.get("canary", True)) == (one, not one)


@settings(max_examples=30)
@given(TEXTS, TEXTS)
def test_a_shell_reads_each_text_as_the_one_that_is_meant(path: str, server: str) -> None:
    made = enrolment(include=(path,), server=server)
    text = script(made, "1.0", carried=Carried(b"packed", "3.11", "x86_64"))
    shown = text.replace(
        "main write_it\n", 'printf "%s\\0" "$content" "$drop_in"; unpack /x | od\n'
    )
    shown = shown.replace('tar -xzf - -C "$1"', "cat")
    for shell in ("/bin/sh", "/bin/bash"):
        done = subprocess.run([shell, "-s"], input=shown.encode(), capture_output=True, check=True,
                              timeout=20, env={"PATH": "/usr/bin:/bin"})  # fmt: skip
        content, place, packed = done.stdout.split(b"\0")
        assert content.decode() == drop_in(made).replace("\0", "")
        assert place == b"/etc/capkeep/conf.d/pulled-by-backup1.toml"
        assert packed == subprocess.run(["od"], input=b"packed", capture_output=True, check=True,
                                        timeout=20).stdout  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_gets_out_of_its_quotes(tmp_path: Path, text: str) -> None:
    """Nothing runs but the script's own functions, whatever a server or a path is called."""
    mark = tmp_path / "escaped"
    hostile = text.format(mark)
    made = enrolment(include=(hostile,), exclude=(hostile,), server=hostile, target=hostile,
                     engine=hostile, key=hostile, job=hostile, name=hostile)  # fmt: skip
    ground = Ground(f"{tmp_path}/{hostile}", f"{tmp_path}/{hostile}")
    for kind in ({}, {"remove": True}, {"carried": Carried(b"", hostile, hostile)}):
        body = script(made, hostile, ground=ground, **kind).rpartition("\nmain ")[0]
        argv = ["/bin/sh", "-c", f"{body}\n:"]
        done = subprocess.run(argv, capture_output=True, timeout=20, check=False, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b""), done
    assert list(tmp_path.iterdir()) == []


@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_every_host_has_a_name_for_tables_and_files(texts: list[str]) -> None:
    assert re.fullmatch(NAME_PATTERN, plain_name(*texts)), plain_name(*texts)


# -- from the configuration


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr("capkeep.config.load.Owner", RootsOwn)
    return Host(tmp_path.resolve())


def test_a_target_takes_what_its_server_writes_and_keeps_the_same(host: Host) -> None:
    config = host.load(
        SERVER.replace("canary = false", 'canary = false\nexclude = ["*.tmp", "/x"]')
    )
    engines = '[engines.restic]\nprogram = "@/restic"\n'
    for name, job in (("web2", "hosts"), ("db", "bases")):
        made = enroll.enrolment(
            config, enroll.target_of(config, name), parse(KEY), "Backup1.example"
        )
        assert (made.name, made.job, made.engine) == ("backup1", f"backup1-{job}", "restic")
        (theirs,) = host.load(engines + drop_in(made)).jobs
        (ours,) = [one for one in config.jobs if one.target == name]
        for field in ("include", "exclude", "one_file_system", "canary"):
            assert getattr(theirs, field) == getattr(ours, field), field


def test_one_host_that_is_two_targets_has_both_in_peace(host: Host) -> None:
    """Each has a key of its own, and neither knows of the other."""
    same = SERVER.replace("[targets.db]\n", '[targets.db]\nhost = "web1.example.org"\n')
    config = host.load(same)
    texts = ""
    for name, key in (("web1", ED25519), ("db", ECDSA)):
        target = enroll.target_of(config, name)
        texts += drop_in(enroll.enrolment(config, target, parse(key), "backup1"))
    jobs = host.load(f'[engines.restic]\nprogram = "@/restic"\n{texts}').jobs
    assert [job.name for job in jobs] == ["backup1-web1-hosts", "backup1-db-bases"]


def test_what_cannot_be_enrolled_is_said(host: Host) -> None:
    config = host.load(
        SERVER.replace('targets = ["db"]', 'targets = ["web1"]').replace("@web", "web2")
    )
    with pytest.raises(UsageError, match="no target nobody"):
        enroll.target_of(config, "nobody")
    with pytest.raises(UsageError, match="no job takes files of db"):
        enroll.enrolment(config, enroll.target_of(config, "db"), parse(KEY), "backup1")


# -- ssh


def test_the_administrators_ssh_believes_the_pinned_keys_alone() -> None:
    there = Way("root@web1", 2222, (KEY,), "me@[2001:db8::1]:2200", (ECDSA,))
    argv = admin_ssh.ssh(there, "/tmp/a %b/known", "exec /bin/sh -s")
    assert argv[-3:] == ["--", "root@web1", "exec /bin/sh -s"]
    for option in ("StrictHostKeyChecking=yes", 'UserKnownHostsFile="/tmp/a %%b/known"',
                   "GlobalKnownHostsFile=/dev/null", "HostKeyAlias=capkeep-target",
                   "ForwardAgent=no"):  # fmt: skip
        assert argv[argv.index(option) - 1] == "-o"
    (through,) = [word for word in argv if word.startswith("ProxyCommand=")]
    assert "-p 2200 -W '[%h]:%p' -- me@2001:db8::1" in through
    assert "HostKeyAlias=capkeep-jump" in through


def test_nobody_can_put_options_of_ssh_into_a_login() -> None:
    for login, jump in (("-oProxyCommand=x", ""), ("root@a b", ""), ("", "-oProxyCommand=x"),
                        ("root@a\nb", "")):  # fmt: skip
        with pytest.raises(UsageError):
            enroll.way(target_config(), login, jump)
    with pytest.raises(UsageError):
        admin_ssh.through(Way("root@a", 22, (), "me@a:b:c:d", ()), "/known")


def test_a_login_of_ones_own_has_the_port_of_ones_own() -> None:
    assert enroll.way(target_config(), "", "") == Way("root@web1.example.org", 2222, (KEY,))
    assert enroll.way(target_config(), "me@web1.example.org", "").port == 2222
    assert enroll.way(target_config(), "me@alias", "j@g").port == 0


# -- host keys


def test_what_a_host_shows_is_compared_with_what_is_pinned() -> None:
    found = (parse(KEY), parse(ECDSA))
    words = {
        (): [Word.OTHER, Word.OTHER],
        (KEY,): [Word.PINNED, Word.OTHER],
        (OTHER,): [Word.CHANGED, Word.OTHER],
        (KEY, OTHER): [Word.PINNED, Word.OTHER],
        (OTHER, ECDSA): [Word.CHANGED, Word.PINNED],
    }
    for pinned, expected in words.items():
        seen = scan.compare(found, pinned)
        assert [one.word for one in seen] == expected, pinned
        assert scan.is_alarming(seen) == (Word.CHANGED in expected)
    gone = scan.compare((parse(ECDSA),), (KEY,))
    assert [one.word for one in gone] == [Word.OTHER, Word.GONE]
    assert scan.is_alarming(gone)
    assert not scan.is_alarming(scan.compare((parse(ECDSA),), (KEY, ECDSA)))


def test_what_is_to_be_written_is_printed_unless_it_is_an_alarm() -> None:
    new = "\n".join(key_lines("host-key", "web1", "web1", scan.compare((parse(KEY),), ()), PLAIN))
    assert f'host-key = ["{KEY}"]' in new
    assert parse(KEY).fingerprint in new
    changed = scan.compare((parse(KEY),), (OTHER,))
    loud = "\n".join(key_lines("host-key", "web1", "web1", changed, PLAIN))
    assert "NOT THE KEY" in loud
    assert "host-key =" not in loud


def test_targets_are_read_from_a_configuration_with_mistakes(tmp_path: Path) -> None:
    """The one that lacks the very key that is asked for."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "capkeep.toml").write_text(
        '[targets.web1]\nport = 2222\ngroups = ["web"]\n[targets.web2]\nhost = "h"\nhost-key = "k"\n'
        '[jobs.nonsense]\nwhat = 1\n[targets.odd]\nport = "x"\nhost = 3\nhost-key = [1]\n'
    )
    (tmp_path / "conf.d/more.toml").write_text('targets.web3.jump = "a@b"\n')
    found = scan.written(str(tmp_path), user_mode=True)
    assert found == {
        "web1": scan.Written("web1", 2222, groups=("web",)),
        "web2": scan.Written("h", keys=("k",)),
        "odd": scan.Written("odd"),
        "web3": scan.Written("web3", jump="a@b"),
    }
    # What cannot be read might pin another key.
    (tmp_path / "conf.d/wrong.toml").write_text("this is no TOML")
    with pytest.raises(MistakesError):
        scan.written(str(tmp_path), user_mode=True)


# -- a target that keeps its password


def test_the_password_that_a_target_keeps_is_in_its_part(host: Host) -> None:
    config = host.load(KEPT)
    key = parse(ED25519)
    assert key is not None
    sealed = enroll.enrolment(config, enroll.target_of(config, "web1"), key, "backup1")
    assert sealed.keeps_password
    read = tomllib.loads(drop_in(sealed))
    assert read["repositories"]["backup1"]["password"] == {
        "file": "/etc/capkeep/secrets/pulled-by-backup1"
    }
    assert "password" not in drop_in(sealed._replace(keeps_password=False))
    assert "umask 077" in script(sealed, "1.0")


def _passwords(tmp_path: Path, **changes: object) -> tuple[int, str]:
    """What the part of the script does that sees to the password: its end, and all that it says."""
    text = script(
        enrolment(keeps_password=True, **changes), "1.0", ground=Ground(f"{tmp_path}/etc")
    )
    text = text.replace("\nmain write_it\n", "\nneed_password\nsay_password\n")
    done = subprocess.run(["/bin/sh", "-s"], input=text.encode(), capture_output=True, timeout=20,
                          check=False, env={"PATH": "/usr/bin:/bin"})  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode()


def test_a_password_is_made_once_and_never_exchanged(tmp_path: Path) -> None:
    secret, part = (
        tmp_path / "etc/secrets/pulled-by-backup1",
        tmp_path / "etc/conf.d/pulled-by-backup1.toml",
    )
    code, said = _passwords(tmp_path)
    assert code == 0, said
    assert f"made {secret}" in said
    assert f"WHOEVER LOSES THE PASSWORD IN {secret} LOSES EVERY BACKUP" in said
    made = secret.read_text()
    assert made not in said
    assert (secret.stat().st_mode & 0o777, secret.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert len(made.strip()) == 40
    assert sorted(p.name for p in secret.parent.iterdir()) == ["pulled-by-backup1"]
    part.parent.mkdir()
    part.write_text(drop_in(enrolment(keeps_password=True), Ground(f"{tmp_path}/etc")))
    code, said = _passwords(tmp_path)
    assert (code, secret.read_text(), "made " in said) == (0, made, False)
    assert "WHOEVER LOSES" in said
    part.write_text(part.read_text().replace(f'{{ file = "{secret}" }}', '{ credential = "own" }'))
    code, said = _passwords(tmp_path)
    assert (code, secret.read_text()) == (4, made)
    assert 'password = { credential = "own" }' in said
    part.unlink()
    secret.write_text("")
    code, said = _passwords(tmp_path)
    assert (code, "there, and empty" in said) == (4, True), said
