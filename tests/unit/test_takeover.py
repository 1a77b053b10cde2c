"""`capkeep import`: what is carried over, what is said of the rest, and that no secret is told."""

import json
import os
import stat
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from capkeep.cli.main import main
from capkeep.errors import CapkeepError
from capkeep.takeover.documents import MAX_BYTES
from capkeep.takeover.draft import redacted
from capkeep.takeover.nodes import ENDLESS
from capkeep.takeover.resticprofile import Templates

SECRETS = ("hunter2hunter2", "12345678-1234-1234-1234-123456789012", "SECRETKEY", "tok3n")

RESTICPROFILE = """
version = "1"

[global]
nice = 10
priority = "low"
ionice = true
ionice-class = 2
ionice-level = 6
default-command = "snapshots"
initialize = false
restic-binary = "@/restic"
scheduler = "crond"

[groups]
full-backup = ["root", "src"]

[default]
repository = "s3:https://s3.example.org/bucket/host"
password-file = "key"
limit-upload = 512
[default.env]
aws_access_key_id = "AKIAIOSFODNN7EXAMPLE"
aws_secret_access_key = "SECRETKEY"
AWS_DEFAULT_REGION = "eu-west-1"
TMPDIR = "/tmp"

[root]
inherit = "default"
initialize = true
no-cache = true
prometheus-save-to-file = "/var/lib/node/restic.prom"
[root.backup]
source = ["/etc", "/srv/*", "./relative", "/opt/{{ .Profile.Name }}", "/var/{{ .Env.X }}"]
exclude = ["**/.git", "*.o", "["]
exclude-file = ["excludes", "not-there"]
exclude-caches = true
exclude-if-present = ".nobackup"
one-file-system = true
tag = ["test", "dev"]
host = "old-name"
check-after = true
run-before = ["echo Starting", "curl -u joe:hunter2hunter2 https://joe:hunter2hunter2@x.example/y"]
run-after-fail = "restic --password=hunter2hunter2 unlock"
schedule = ["*-*-* 03:00", "every tuesday"]
schedule-permission = "system"
schedule-lock-wait = "15m30s"
no-such-option = "hunter2hunter2"
[root.backup.send-before]
url = "https://hc-ping.com/12345678-1234-1234-1234-123456789012/start"
[root.backup.send-after]
method = "HEAD"
url = "https://hc-ping.com/12345678-1234-1234-1234-123456789012"
[root.backup.send-after-fail]
url = "https://chat.example.org/hooks/12345678-1234-1234-1234-123456789012"
[root.retention]
before-backup = false
after-backup = true
keep-last = 3
keep-daily = 7
keep-yearly = false
keep-within = "1m15d"
keep-weekly = "unlimited"
keep-tag = ["forever"]
prune = true
host = true
tag = ["test"]
[root.check]
schedule = "Sun 04:00"
read-data-subset = "1/4"
[root.copy]
repository = "/elsewhere"

[src]
inherit = "default"
[src.backup]
source = ["/usr/src"]
schedule = "daily"
schedule-ignore-on-battery = true
[src.forget]
keep-daily = 7
[src.snapshots]
tag = ["dev"]

[stdin]
inherit = "default"
[stdin.backup]
stdin = true
stdin-filename = "dump"
"""

BORGMATIC: dict[str, Any] = {
    "location": {
        "source_directories": ["/home", "/etc", "/var/log/syslog*", "relative"],
        "repositories": [
            "user@backup.example.org:host.borg",
            "ssh://k8p@k8p.repo.example.org/./repo",
            "/var/lib/backups/{hostname}.borg",
            "/var/{now}",
        ],
        "one_file_system": True,
        "exclude_patterns": ["*.pyc", "/home/*/.cache", "re:^/x"],
        "exclude_from": ["@/borg-excludes"],
        "exclude_caches": True,
        "patterns": ["R /srv", "- /srv/tmp", "+ /srv/cache/keep", "- /srv/cache"],
    },
    "storage": {
        "encryption_passphrase": "hunter2hunter2",
        "ssh_command": "ssh -i /root/.ssh/id_borg -o Compression=no",
        "compression": "lz4",
        "remote_path": "borg-1.4",
        "upload_rate_limit": 1000,
        "retries": 3,
        "retry_wait": 10,
        "lock_wait": 5,
        "archive_name_format": "{hostname}-{now}",
    },
    "retention": {"keep_hourly": 24, "keep_daily": 7, "keep_within": "2w", "keep_yearly": -1},
    "consistency": {
        "checks": [
            {"name": "repository", "frequency": "2 weeks"},
            {"name": "data", "frequency": "6 weeks"},
            {"name": "extract"},
        ],
        "check_last": 3,
    },
    "hooks": {
        "before_backup": ["echo Starting"],
        "on_error": ["curl --header 'Authorization: Bearer hunter2hunter2' https://x.example"],
        "commands": [{"before": "action", "run": ["mysqldump --password=hunter2hunter2 a > b"]}],
        "postgresql_databases": [
            {"name": "users"},
            {"name": "orders", "hostname": "127.0.0.1", "format": "custom"},
            {"name": "far", "hostname": "db.example.org", "password": "hunter2hunter2"},
        ],
        "mysql_databases": [{"name": "one"}, {"name": "all", "skip_names": ["test", "one"]}],
        "sqlite_databases": [{"name": "a", "path": "/srv/a.db"}, {"name": "b", "path": "/srv/b.db"}],
        "mongodb_databases": [{"name": "m"}],
        "healthchecks": {
            "ping_url": "https://hc-ping.com/12345678-1234-1234-1234-123456789012",
            "send_logs": False,
        },
        "ntfy": {"topic": "hunter2hunter2", "access_token": "{credential systemd ntfy}"},
        "apprise": {"services": [{"url": "gotify://host/tok3n", "label": "x"}],
                    "states": ["finish", "fail"]},
        "cronitor": {"ping_url": "https://cronitor.link/abc"},
    },
    "nobody_knows": "hunter2hunter2",
    "skip_actions": ["compact"],
}  # fmt: skip


class Desk:
    """A directory with what is to be taken over, and the command line."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys
        self.file("restic", "#!/bin/sh\n", 0o755)
        self.file("key", "a password\n", 0o600)
        self.file("excludes", "*.bak\n")
        self.file("borg-excludes", "# comment\n/var/tmp/\nsh:home/*/.npm\n")

    def file(self, name: str, text: str, mode: int = 0o644) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("@/", f"{self.root}/"))
        path.chmod(mode)
        return str(path)

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, output and errors; no secret is in either."""
        try:
            code = main(["--user", "--prefix", str(self.root / "home"), *words])
        except CapkeepError as error:
            code, message = error.exit_code, f"{error} {error.hint}"
            self._capsys.readouterr()
            return code, "", message
        out, err = self._capsys.readouterr()
        for secret in SECRETS:
            assert secret not in out
            assert secret not in err
        return code, out, err

    def taken(self, *words: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The configuration that is written, and what is said of it."""
        _, out, _ = self.run("import", "--json", *words)
        found = json.loads(out)
        return tomllib.loads(found["toml"]), found["remarks"]

    def mistakes(self) -> list[dict[str, Any]]:
        _, out, err = self.run("config", "check", "--json")
        assert out, err
        found: list[dict[str, Any]] = json.loads(out)["mistakes"]
        return found


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    tmp_path.chmod(0o755)
    return Desk(tmp_path, capsys)


def said(remarks: list[dict[str, Any]], kind: str = "left") -> set[str]:
    return {r["key"] for r in remarks if r["kind"] == kind}


def test_resticprofile_is_one_thing_in_three_formats(desk: Desk) -> None:
    data = tomllib.loads(RESTICPROFILE.replace("{{ .Profile.Name }}", "MARK"))
    text = {"profiles.json": json.dumps(data), "profiles.yaml": yaml.safe_dump(data)}
    found, remarks = desk.taken(desk.file("profiles.toml", RESTICPROFILE))
    for name, written in text.items():
        other, _ = desk.taken(desk.file(name, written.replace("MARK", "{{ .Profile.Name }}")))
        assert other == found, name
    root = f"{desk.root}/home/etc/secrets"
    assert found["repositories"] == {
        "host": {
            "engine": "restic", "location": "s3:https://s3.example.org/bucket/host",
            "password": {"file": f"{desk.root}/key"}, "options": {"region": "eu-west-1"},
            "credentials": {
                "AWS_ACCESS_KEY_ID": {"file": f"{root}/host-aws_access_key_id"},
                "AWS_SECRET_ACCESS_KEY": {"file": f"{root}/host-aws_secret_access_k"},
            },
        }
    }  # fmt: skip
    assert found["jobs"]["root"] == {
        "repositories": ["host"], "include": ["/etc", "/opt/root"], "exclude": ["**/.git", "*.o"],
        "exclude-from": [f"{desk.root}/excludes"], "one-file-system": True,
        "tags": ["test", "dev"], "host": "old-name", "schedule": ["*-*-* 03:00"],
        "lock-wait": "15m 30s", "on-battery": True, "on-metered": True,
        "upload-limit": "512KiB/s", "nice": 10, "io-class": "best-effort", "io-priority": 6,
        "check": {"schedule": ["Sun 04:00"], "after-backup": True, "read-data": "rotate 4w"},
        "retention": {
            "keep-last": 3, "keep-daily": 7, "keep-weekly": ENDLESS, "keep-within": "46d",
            "keep-tags": ["forever"], "prune": True,
        },
    }  # fmt: skip
    assert found["metrics"] == {"directory": "/var/lib/node"}
    assert found["engines"]["restic"]["program"] == f"{desk.root}/restic"
    assert "on-battery" not in found["jobs"]["src"]
    assert "retention" not in found["jobs"]["src"]  # there it runs by hand alone
    assert found["notify"]["healthchecks"]["jobs"] == ["root"]
    left = {
        "root.backup.source", "root.backup.exclude", "root.backup.exclude-file",
        "root.backup.exclude-caches", "root.backup.exclude-if-present", "root.backup.run-before",
        "root.backup.run-after-fail", "root.backup.schedule", "root.backup.no-such-option",
        "root.backup.send-after-fail", "root.copy",
        "stdin.backup.stdin", "stdin.backup.stdin-filename", "schedule",
    }  # fmt: skip
    assert said(remarks) == left
    lines = {r["key"]: r["line"] for r in remarks}
    assert RESTICPROFILE.splitlines()[lines["root.backup.no-such-option"] - 1].startswith("no-such")
    assert "secrets" in said(remarks, "by-hand")


def test_version_2_of_resticprofile(desk: Desk) -> None:
    desk.file("more.yaml", "profiles:\n  home:\n    backup:\n      exclude: [/b]\n")
    text = """\
version: "2"
includes: more.yaml
mixins: {}
groups:
  all: {profiles: [home], schedules: {backup: {at: daily}}}
profiles:
  base:
    repository: local:/srv/repo
    password-command: cat /etc/key
    backup: &b
      exclude: [/a]
      source: [/home, /srv]
  home:
    inherit: base
    backup:
      exclude...: /c
      source: [/home]
      schedule: {at: ["13:30"], lock-wait: 1h}
      no-error-on-warning: true
    retention: {keep-daily: 7}
    prune: {schedule: weekly}
"""
    found, remarks = desk.taken(desk.file("profiles.yaml", text))
    repository = found["repositories"]["repo"]
    assert repository["location"] == "/srv/repo"
    assert repository["password"] == {"file": "/etc/key"}
    job = found["jobs"]["home"]
    assert (job["include"], job["schedule"], job["lock-wait"]) == (["/home"], ["13:30"], "1h")
    assert job["exclude"] == ["/b", "/c"]
    assert job["retention"] == {"keep-daily": 7, "prune": True}  # after each backup, unless said
    assert {"groups.all", "home.backup.no-error-on-warning"} <= said(remarks)


def test_lists_of_version_1_are_put_together_by_number(desk: Desk) -> None:
    text = (
        "a:\n  repository: /srv/r\n  backup: {source: [/a, /b]}\n"
        "c:\n  inherit: a\n  backup: {source: [/c]}\n"
    )
    found, _ = desk.taken(desk.file("profiles.yaml", text))
    assert found["jobs"]["c"]["include"] == ["/c", "/b"]


def test_borgmatic_in_sections_and_flat(desk: Desk) -> None:
    flat = {k: v for part in BORGMATIC.values() if isinstance(part, dict) for k, v in part.items()}
    flat |= {k: BORGMATIC[k] for k in ("nobody_knows", "skip_actions")}
    found, remarks = desk.taken(desk.file("old/config.yaml", yaml.safe_dump(BORGMATIC)))
    assert desk.taken(desk.file("new/config.yaml", yaml.safe_dump(flat)))[0] == found
    names = list(found["repositories"])
    assert len(names) == 3
    place = found["repositories"]["host-borg"]
    assert (place["engine"], place["location"]) == (
        "borg", "ssh://user@backup.example.org/./host.borg",
    )  # fmt: skip
    assert place["options"]["identity"] == {"file": "/root/.ssh/id_borg"}
    assert place["options"]["remote-path"] == "borg-1.4"
    job = found["jobs"]["system"]
    assert job["repositories"] == names
    left = [r["problem"] for r in remarks if r["key"] == "repositories" and r["kind"] == "left"]
    assert sum("{now}" in text for text in left) == 1
    assert len(left) == 1
    assert job["include"] == ["/home", "/etc", "/srv"]
    assert job["exclude"] == [
        "/srv/tmp", "/**/*.pyc", "/home/*/**/.cache", "/var/tmp/*", "/home/*/.npm",
    ]  # fmt: skip
    assert job["check"] == {"schedule": ["*-*-01,15 04:00"], "read-data": "rotate 42d"}
    assert job["retention"] == {
        "keep-hourly": 24, "keep-daily": 7, "keep-yearly": ENDLESS, "keep-within": "14d",
    }  # fmt: skip
    assert (job["retries"], job["retry-wait"], job["lock-wait"]) == (3, "10s", "5s")
    assert found["dumps"] == {
        "postgresql": {"kind": "postgresql", "databases": ["users", "orders"]},
        "mysql": {"kind": "mysql", "exclude-databases": ["test"]},
        "sqlite": {"kind": "sqlite", "paths": ["/srv/a.db", "/srv/b.db"]},
    }
    assert found["notify"]["ntfy"]["token"] == {"credential": "ntfy"}
    assert found["notify"]["apprise"]["when"] == "always"
    assert said(remarks) == {
        "source_directories", "repositories", "exclude_patterns", "exclude_caches", "patterns",
        "ssh_command", "compression", "checks.extract",
        "check_last", "before_backup", "on_error", "commands", "postgresql_databases.hostname",
        "mongodb_databases", "cronitor", "nobody_knows", "schedule",
    }  # fmt: skip


AFTERWARDS = '[a]\nrepository = "/r"\n[a.backup]\nsource = "/s"\n[a.retention]\n'


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.yaml", "repositories: [/r]\nkeep_daily: 7\nkeep_minutely: 10\n"),
        ("a.yaml", "repositories: [/r]\nkeep_daily: 7\nkeep_yearly: some\n"),
        ("a.yaml", "repositories: [/r]\nkeep_daily: 7\nkeep_within: ever\n"),
        ("a.toml", AFTERWARDS + 'after-backup = true\nkeep-daily = 7\nkeep-within-yearly = "9y"\n'),
        ("a.toml", AFTERWARDS + 'schedule = "daily"\nkeep-daily = 7\nkeep-yearly = "x"\nprune = true\n'),
    ],
)  # fmt: skip
def test_a_part_of_the_rules_never_removes_more(desk: Desk, name: str, text: str) -> None:
    """Where one rule cannot be said, the others alone would remove what it keeps."""
    found, remarks = desk.taken(desk.file(name, text))
    assert "retention" not in found["jobs"]["a"]
    assert any("nothing is removed" in r["problem"] and r["kind"] == "left" for r in remarks)
    assert not any("not understood" in r["problem"] for r in remarks)


def test_borgmatic_s_own_ways_of_writing(desk: Desk) -> None:
    desk.file("common.yaml", "keep_daily: 7\nsource_directories: [/etc]\nkeep_weekly: 1\n")
    text = """\
<<: !include common.yaml
constants: {app: shop}
source_directories: ["/srv/{app}", "/x/${PLACE:-y}"]
repositories: [{path: /srv/r.borg, label: Here!}]
encryption_passphrase: ${BORG_PW}
keep_weekly: 4
checks: [repository, extract]
archive_hostname: 007
on_error: !omit
umask: 12:30
"""
    found, remarks = desk.taken(desk.file("shop.yaml", text))
    job = found["jobs"]["shop"]
    assert job["include"] == ["/etc", "/srv/shop"]
    assert job["retention"] == {"keep-daily": 7, "keep-weekly": 4}
    assert job["check"] == {"after-backup": True}
    assert {r["problem"] for r in remarks if r["key"] == "checks.extract"} == {
        "there is no check 'extract'"
    }
    assert (job["host"], list(found["repositories"])) == ("007", ["here"])
    assert {"encryption_passphrase", "source_directories", "umask"} <= said(remarks)


def test_what_is_written_is_a_configuration(desk: Desk) -> None:
    """From the command line to the command line: secrets in files, no mistakes, and nothing over."""
    text = """\
version: 1
global: {restic-binary: "@/restic"}
system:
  repository: rest:https://joe:hunter2hunter2@rest.example.org/joe
  env: {RESTIC_PASSWORD: "SECRETKEY"}
  backup:
    source: [/etc]
    schedule: "03:00"
    send-after: https://hc-ping.com/12345678-1234-1234-1234-123456789012
  retention: {after-backup: true, keep-daily: 7}
"""
    file = desk.file("profiles.yaml", text)
    etc = desk.root / "home/etc"
    etc.mkdir(parents=True, mode=0o755)
    words = ("import", file, "--output", str(etc / "capkeep.toml"))
    code, out, err = desk.run(*words, "--write-secrets", str(etc / "secrets"))
    assert (code, out) == (0, ""), err
    assert desk.mistakes() == []
    held = {p.name: p for p in (etc / "secrets").iterdir()}
    assert {n: p.read_text() for n, p in held.items()} == {
        "joe-restic_rest_username": "joe", "joe-restic_rest_password": "hunter2hunter2",
        "system": "SECRETKEY",
        "healthchecks-url": "https://hc-ping.com/12345678-1234-1234-1234-123456789012",
    }  # fmt: skip
    assert {stat.S_IMODE(p.stat().st_mode) for p in (etc / "secrets", *held.values())} == {
        0o700, 0o600,
    }  # fmt: skip
    before = (etc / "capkeep.toml").read_text()
    assert "rest:https://rest.example.org/joe" in before
    assert desk.run(*words)[0] == 4  # it is there already
    assert (etc / "capkeep.toml").read_text() == before
    assert desk.run(*words, "--overwrite")[0] == 3  # without the secrets
    held["system"].write_text("another")
    assert desk.run("import", file, "--write-secrets", str(etc / "secrets"))[0] == 4
    assert held["system"].read_text() == "another"


def test_a_configuration_for_borg_needs_nothing_but_the_engine(desk: Desk) -> None:
    text = """\
source_directories: [/etc]
repositories: [{path: /srv/r.borg}]
encryption_passphrase: hunter2hunter2
keep_daily: 7
healthchecks: {ping_url: "https://hc-ping.com/12345678-1234-1234-1234-123456789012"}
"""
    timer = desk.file(
        "borgmatic.timer",
        "[Unit]\nOnCalendar=no\n[Timer]\nOnCalendar=*-*-* 02:00\n# x\nRandomizedDelaySec=30m\n"
        "Persistent=true\n[Install]\nWantedBy=timers.target\n",
    )
    etc = desk.root / "home/etc"
    code, _, err = desk.run(
        "import", timer, desk.file("config.yaml", text), "--output", str(etc / "capkeep.toml"),
        "--write-secrets", str(etc / "secrets"),
    )  # fmt: skip
    assert code == 0, err
    assert stat.S_IMODE((etc / "capkeep.toml").stat().st_mode) == 0o600
    job = tomllib.loads((etc / "capkeep.toml").read_text())["jobs"]["system"]
    assert (job["schedule"], job["spread"]) == (["*-*-* 02:00"], "30m")
    assert {m["key"] for m in desk.mistakes()} <= {"engines.borg.program"}


def test_a_place_that_the_engine_does_not_reach_is_told(desk: Desk) -> None:
    """Nobody is told that all was carried over, and then that it cannot be."""
    text = "source_directories: [/etc]\nrepositories: [{path: 'sftp://u@h.example.org/r'}]\n"
    _, remarks = desk.taken(desk.file("config.yaml", text))
    assert any("sftp: locations" in r["problem"] for r in remarks if r["kind"] == "left")


def test_the_environment_of_a_running_set_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    file = desk.file(
        "restic.env",
        "# comment\nexport RESTIC_REPOSITORY='b2:bucket:host'\nRESTIC_PASSWORD_COMMAND=cat /etc/pw\n"
        'B2_ACCOUNT_ID=00123\nB2_ACCOUNT_KEY="SECRETKEY"\nRESTIC_COMPRESSION=max\nOTHER=1\n'
        "export RESTIC_PASSWORD=$(cat /etc/other)\n",
    )  # fmt: skip
    found, remarks = desk.taken("--restic", file)
    place = found["repositories"]["host"]
    assert (place["location"], place["engine-network"]) == ("b2:bucket:host", True)
    assert place["password"] == {"file": "/etc/pw"}
    assert list(place["credentials"]) == ["B2_ACCOUNT_ID", "B2_ACCOUNT_KEY"]
    assert said(remarks) == {
        "env.RESTIC_COMPRESSION", "env.OTHER", "RESTIC_PASSWORD", "schedule",
    }  # fmt: skip
    assert "backup" in said(remarks, "by-hand")  # of what
    for name, value in {
        "BORG_REPO": "/srv/borg/host", "BORG_PASSPHRASE": "hunter2hunter2", "BORG_UMASK": "1",
        "RESTIC_REPOSITORY": "x", "HOME": "/root",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found, remarks = desk.taken("--borg")
    assert found["repositories"]["host"]["location"] == "/srv/borg/host"
    assert said(remarks) == {"BORG_UMASK", "schedule"}
    # What no configuration can hold is told, and stops nothing else.
    monkeypatch.setenv("BORG_PASSPHRASE", os.fsdecode(b"hunter2hunter2\xff"))
    code, out, _ = desk.run("import", "--json", "--borg", "--write-secrets", str(desk.root / "s"))
    assert (code, "password" in tomllib.loads(json.loads(out)["toml"])["repositories"]["host"]) == (
        3, False,
    )  # fmt: skip
    monkeypatch.setenv("BORG_PASSPHRASE", "hunter2hunter2\r\n")
    for _ in range(2):  # the second time it is there already, and the same
        assert desk.run("import", "--borg", "--write-secrets", str(desk.root / "s"))[0] == 3
    assert (desk.root / "s/host").read_bytes() == b"hunter2hunter2\r\n"
    assert desk.run("import")[0] == 2
    assert desk.run("import", "--borg", desk.file("empty", ""))[0] == 2


def test_a_service_that_starts_restic(desk: Desk) -> None:
    desk.file("env", "RESTIC_REPOSITORY=/srv/restic\nRESTIC_PASSWORD_FILE=/etc/pw\nWHAT=/home\n")
    service = """\
[Unit]
Description=x
[Service]
Type=oneshot
Environment="KEEP=7" OTHER=1
EnvironmentFile=-@/env
ExecStartPre=/usr/bin/notify-send begin
ExecStart=/usr/bin/restic backup -x --exclude-caches --tag=a,b -e '*.tmp' \\
   --exclude-file=@/excludes --limit-upload 100 /etc $WHAT
ExecStart=/usr/bin/restic forget --prune -d ${KEEP} --keep-weekly 4
ExecStartPost=-/usr/bin/restic check --read-data-subset=5%
Nice=10
IOSchedulingClass=idle
CPUQuota=50%
ProtectSystem=strict
"""
    timer = desk.file("restic.timer", "[Timer]\nOnCalendar=daily\nOnBootSec=5m\n")
    found, remarks = desk.taken(desk.file("restic.service", service), timer)
    assert found["jobs"]["restic"] == {
        "repositories": ["restic"], "include": ["/etc", "/home"], "exclude": ["*.tmp"],
        "exclude-from": [f"{desk.root}/excludes"], "one-file-system": True, "tags": ["a", "b"],
        "upload-limit": "100KiB/s", "nice": 10, "io-class": "idle", "cpu-limit": "50%",
        "schedule": ["daily"], "check": {"after-backup": True, "read-data": "5%"},
        "retention": {"keep-daily": 7, "keep-weekly": 4, "prune": True},
    }  # fmt: skip
    assert said(remarks) == {"ExecStartPre", "OnBootSec", "backup.exclude-caches"} | {
        f"env.{n}" for n in ("KEEP", "OTHER", "WHAT")
    }
    assert "ProtectSystem" in said(remarks, "note")


HTTP = """\
a:
  repository: http://x:SECRETKEY@h/
  env: {RESTIC_PASSWORD: SECRETKEY}
  backup: {source: /b/SECRETKEY*}
"""
COMMANDS = """\
repositories: ['ssh://u:hunter2hunter2@h/r', 'u:hunter2hunter2@h:r']
encryption_passcommand: printf hunter2hunter2
commands:
  - run:
    - mysqldump -phunter2hunter2 x
    - /usr/bin/sshpass -p hunter2hunter2 ssh x
    - sshpass -phunter2hunter2 ssh x
    - SSHPASS=tok3n y
    - wget https://x/?key=SECRETKEY
    - x --api-key tok3n
    - curl --user a:tok3n z
    - psql postgresql://u:tok3n@h/db
ssh_command: sshpass -p tok3n ssh
pagerduty: {integration_key: tok3n}
pushover: {token: tok3n}
influxdb_databases: [{name: a, password: tok3n}]
uptime_kuma: {push_url: https://x/tok3n}
"""
SERVICE = """\
[Service]
Environment=RESTIC_PASSWORD=SECRETKEY
ExecStartPre=/bin/x --token=tok3n
ExecStart=restic -r rest:http://a:tok3n@h/ backup /
"""


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.yaml", 'a: {repository: "sftp:joe:hunter2hunter2@h:/r", backup: {source: /a}}'),
        ("a.yaml", 'a: {repository: "sftp://joe:hunter2hunter2@h//r", backup: {source: /a}}'),
        ("a.yaml", 'a: {repository: "s3:http://AK:SECRETKEY@h/b", backup: {source: /a}}'),
        ("a.yaml", 'a: {repository: "rclone::s3,secret_access_key=SECRETKEY:b", backup: {source: /a}}'),
        ("a.yaml", "a: {repository: /r, password-command: echo hunter2hunter2, backup: {source: /a}}"),
        ("a.yaml", "a: {repository: /r, password-command: env pass=hunter2hunter2 x, backup: {}}"),
        ("a.yaml", "a: {repository: 'rclone:x:', env: {RCLONE_CONFIG_X_PASS: SECRETKEY}, backup: {}}"),
        ("a.yaml", "a: {repository: 'azure:x:/', env: {AZURE_ACCOUNT_SAS: sig=SECRETKEY}, backup: {}}"),
        ("a.yaml", "a: {repository: 'rclone:x:', env: {RCLONE_CONFIG_X_URL: 'https://a:tok3n@h/'}, backup: {}}"),
        ("a.yaml", HTTP), ("a.yaml", COMMANDS), ("a.service", SERVICE),
    ],
)  # fmt: skip
def test_no_secret_is_told(desk: Desk, name: str, text: str) -> None:
    """Neither on a terminal nor in JSON: `run` looks for them in all that is said."""
    file = desk.file(name, text)
    assert desk.run("import", file)[0] == 3
    assert desk.run("import", "--json", file)[0] == 3


@pytest.mark.parametrize("word", ["a", "pass", "pass=", "x ", "https://", "'", 'key="'])
def test_long_commands_are_told_at_once(word: str) -> None:
    command = "mysql -p" + word * 50_000
    begun = time.monotonic()
    redacted(command)
    Templates("/").hide("{{" + word * 50_000 + "{{" * 50_000, "x")
    assert time.monotonic() - begun < 20


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)
)


def test_yaml_without_its_library(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "capkeep.takeover.yaml_file", raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    code, _, error = desk.run("import", desk.file("a.yaml", "location: {}\n"))
    assert code == 5
    assert "python3-yaml" in error
    assert desk.run("import", desk.file("profiles.toml", "[a]\nrepository = '/r'\n"))[0] == 3


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("a.yaml", "a: 1\nb: [1\nc: 2\n", "a.yaml:3: is not YAML"),
        ("a.yaml", "a: 1\nlocation:\n  b: 1\n  b: 2\n", "a.yaml:4: b is written twice"),
        ("a.yaml", "source_directories: [*nobody]\n", "a.yaml:1: is not YAML"),
        ("a.yaml", BOMB, "comes to more than any configuration"),
        ("a.yaml", "a: &a\n  b: *a\n", "comes to more than any configuration"),
        ("a.yaml", "[" * 100_000, "a.yaml:1: is nested too deeply"),
        ("a.yaml", "a: \0", "a.yaml: is not YAML"),
        ("a.yaml", "x" * (MAX_BYTES + 1), "longer than any configuration"),
        ("a.yaml", "<<: !include [a.yaml, a.yaml]\nlocation: {}\n", "includes itself"),
        ("a.toml", "version = 1\n[a\n", "is not TOML"),
        ("a.json", '{\n "a": }', "a.json:2: is not JSON"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.hcl", "", "HCL is not read here"),
        ("a.yaml", "version: 1\n{{ range .X }}\n", "a.yaml:2: the template {{ range .X }}"),
        ("a.yaml", "version: 2\n", "has no profiles"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_its_line(
    desk: Desk, name: str, text: str, expected: str
) -> None:
    code, _, error = desk.run("import", desk.file(name, text))
    assert code == 5
    assert expected in error


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.yaml", ""),
        ("a.yaml", "source_directories: {a: [{}]}\nrepositories: 3\nchecks: [[1]]\nhooks: x\n"),
        ("a.yaml", "location:\nretention: 3\nrepositories: [{path: [1]}, {}, null]\nntfy: 3\n"),
        ("a.yaml", "repositories: ['host:']\npostgresql_databases: [3]\ncommands: {a: 1}\n"),
        ("a.yaml", 'a: {repository: "rest:x\\nengine-network = true", backup: {source: 3}}'),
        ("a.yaml", '"a]\\n[x": {repository: "/r\\"\\n[x]", backup: {"s\\n[y]\\nz": 1}}'),
        ("a.json", '{"a": {"repository": "/r\\ud800", "env": {"AWS_X\\ny = 1": "z"}, "backup": {}}}'),
        ("a.json", '{"a": {"repository": "sftp:$(reboot)@h;x:/r", "backup": 7, "inherit": "a"}}'),
        ("a.toml", "default = 3\n[a]\ninherit = 1979-05-27\nrepository = true\n"),
        ("a.service", "[Service]\nExecStart=restic\nEnvironment='\nExecStart=restic -r\n"),
        ("a.timer", "OnCalendar\n[Timer]\nOnCalendar=x\n"),
    ],
)  # fmt: skip
def test_whatever_is_in_a_file_one_gets_a_configuration_and_is_told(
    desk: Desk, name: str, text: str
) -> None:
    found, remarks = desk.taken(desk.file(name, text))
    assert set(found) <= {"repositories", "jobs", "dumps", "notify", "engines"}
    for job in found.get("jobs", {}).values():
        assert set(job) <= {"repositories", "include", "exclude", "check", "retention", "dumps"}
    assert said(remarks) | said(remarks, "by-hand")
    for remark in remarks:
        assert "\n" not in "".join(str(v) for v in remark.values())
