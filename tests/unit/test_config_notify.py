"""Channels in the configuration: what is right, and every mistake with its line and what to write."""

from pathlib import Path

import pytest

from capkeep.config.load import load
from capkeep.config.mistakes import MistakesError
from capkeep.config.model import Config, NotifyConfig
from capkeep.config.settings import as_toml
from capkeep.plan.compile import compile_plan, users_needed
from capkeep.values import SecretSource
from tests.engines import restic_programs
from tests.unit.test_compile import SYSTEM

HEAD = """\
[repositories.local]
engine = "restic"
location = "/srv/repo"
password = { file = "@/secret" }
[engines.restic]
program = "@/restic"
[jobs.system]
repositories = ["local"]
include = ["/etc"]
"""
LINES = HEAD.count("\n")


def loaded(folder: Path, text: str) -> Config:
    (folder / "restic").symlink_to(next(iter(restic_programs().values())))
    for name in ("secret", "mail", "hook"):
        (folder / name).write_text("a secret\n")
        (folder / name).chmod(0o600)
    (folder / "ca.pem").write_text("an authority\n")
    (folder / "open").write_text("x")
    (folder / "open").chmod(0o666)
    (folder / "setgid").write_text("#!/bin/sh\n")
    (folder / "setgid").chmod(0o2755)
    (folder / "mailer").write_text("#!/bin/sh\n")
    (folder / "mailer").chmod(0o755)
    (folder / "capkeep.toml").write_text((HEAD + text).replace("@/", f"{folder}/"))
    return load(str(folder))


def channel(folder: Path, text: str) -> NotifyConfig:
    (found,) = loaded(folder, text).notify
    return found


def test_a_table_that_is_called_by_its_kind_needs_little(tmp_path: Path) -> None:
    found = channel(tmp_path, '[notify.mail]\nto = "admin@example.org"\n')
    assert (found.kind, found.when, found.to) == ("mail", "failure", ("admin@example.org",))
    assert (found.host, found.port, found.tls) == ("localhost", 25, "none")
    assert found.log
    assert found.retry_seconds == 600


@pytest.mark.parametrize(
    "smtp, tls",
    [
        ("mail.example.org:465", "tls"),
        ("mail.example.org:587", "starttls"),
        ("mail.example.org:25", "starttls"),
        ("localhost:587", "none"),
        ("[::1]:25", "none"),
    ],
)
def test_mail_is_encrypted_unless_it_stays_here(tmp_path: Path, smtp: str, tls: str) -> None:
    found = channel(tmp_path, f'[notify.mail]\nto = "a@b"\nsmtp = "{smtp}"\n')
    assert found.tls == tls
    assert f"{found.host}:{found.port}" == smtp.replace("[", "").replace("]", "")


def test_healthchecks_are_always_told_and_secrets_stay_where_they_are(tmp_path: Path) -> None:
    text = '[notify.hc]\nkind = "healthchecks"\nurl = { file = "@/hook" }\n'
    found = channel(tmp_path, text)
    assert (found.when, found.url) == ("always", "")
    assert found.secrets == (("url", SecretSource(file=f"{tmp_path}/hook")),)


def test_what_holds_is_shown_with_its_places(tmp_path: Path) -> None:
    text = """\
[notify.chat]
kind = "webhook"
url = { file = "@/hook" }
headers.X-Token = { file = "@/secret" }
headers.X-Plain = "plain"
retry-for = "90s"
[notify.apprise]
urls = [{ file = "@/hook" }]
[metrics]
directory = "/var/lib/metrics"
"""
    shown = as_toml(loaded(tmp_path, text))
    assert "[notify.chat]" in shown
    assert f'headers.X-Token = {{ file = "{tmp_path}/secret" }}' in shown
    assert 'headers.X-Plain = "plain"' in shown
    assert 'retry-for = "1m 30s"' in shown
    assert f'urls = [{{ file = "{tmp_path}/hook" }}]' in shown
    assert f'directory = "/var/lib/metrics"  # {tmp_path}/capkeep.toml:{LINES + 10}' in shown


@pytest.mark.parametrize(
    "text, line, key, problem, hint",
    [
        ('[notify.ops]\nurl = "https://h/"\n', 1, "notify.ops", "no kind of channel", 'kind = "webhook"'),
        ('[notify.ops]\nto = "a@b"\n', 1, "notify.ops", "no kind of channel", 'kind = "mail"'),
        ('[notify.ops]\nkind = "pager"\n', 2, "notify.ops.kind", "should be", ""),
        ("[notify.mail]\n", 1, "notify.mail.to", "nobody", "admin@example.org"),
        ('[notify.mail]\nto = ["a@b", "root"]\n', 2, "notify.mail.to", "'root' is not", "user@host"),
        ("[notify.mail]\nto = 7\n", 2, "notify.mail.to", "a text or a list", "write"),
        ('[notify.mail]\nto = "a@b"\nfrom = "A <a@b>"\n', 3, "notify.mail.from", "is not a mail", "user@host"),
        ('[notify.mail]\nto = "a@b"\nsmtp = "mail"\n', 3, "notify.mail.smtp", "its port", ":587"),
        ('[notify.mail]\nto = "a@b"\nuser = "x"\n', 1, "notify.mail.password", "needed too", "file ="),
        ('[notify.mail]\nto = "a@b"\npassword = { file = "@/mail" }\n', 1, "notify.mail.user", "needed too", "user ="),
        ('[notify.mail]\nto = "a@b"\nsmtp = "h.org:25"\ntls = "none"\nuser = "x"\npassword = { file = "@/mail" }\n', 4, "notify.mail.tls", "others can read", "starttls"),
        ('[notify.mail]\nto = "a@b"\npassword = "hunter2"\nuser = "x"\n', 3, "notify.mail.password", "must not be written", "file ="),
        ('[notify.mail]\nto = "a@b"\nsendmail = "@/setgid"\n', 3, "notify.mail.sendmail", "owner's rights", "localhost:25"),
        ('[notify.mail]\nto = "a@b"\nsendmail = "@/mailer"\nsmtp = "h:25"\n', 4, "notify.mail.smtp", "beside sendmail", "choose"),
        ('[notify.mail]\nto = "a@b"\nsendmail-files = ["@/ca.pem"]\n', 3, "notify.mail.sendmail-files", "without sendmail", "take it"),
        ('[notify.mail]\nto = "a@b"\nurl = "https://h/"\n', 3, "notify.mail.url", "no meaning for mail", "take it away"),
        ('[notify.mail]\nto = "a@b"\nca-file = "@/open"\n', 3, "notify.mail.ca-file", "written by others", "chown"),
        ('[notify.mail]\nto = "a@b"\nca-file = "@/gone"\n', 3, "notify.mail.ca-file", "cannot be looked at", "there"),
        ("[notify.webhook]\n", 1, "notify.webhook.url", "where to", "file ="),
        ('[notify.webhook]\nurl = "example.org/x"\n', 2, "notify.webhook.url", "not an address", "https://"),
        ('[notify.webhook]\nurl = "https://u:p@h/"\n', 2, "notify.webhook.url", "must not be written", "file ="),
        ('[notify.webhook]\nurl = { file = "@/gone" }\n', 2, "notify.webhook.url", "no secret file", "install"),
        ('[notify.webhook]\nurl = "https://h/"\nheaders."X Y" = "z"\n', 3, "notify.webhook.headers", "no name of a header", "letters"),
        ("[notify.apprise]\n", 1, "notify.apprise.urls", "nobody", "file ="),
        ('[notify.apprise]\nurls = ["discord://a/b"]\n', 2, "notify.apprise.urls[0]", "must not be written", "file ="),
        ('[notify.mail]\nto = "a@b"\njobs = ["sytem"]\n', 3, "notify.mail.jobs[0]", "no job 'sytem'", '"system"'),
        ('[notify.mail]\nto = "a@b"\nwhne = "always"\n', 3, "notify.mail.whne", "unknown key", "when"),
        ('[jobs.b]\nrepositories = ["local"]\ninclude = ["/etc"]\nnotify = ["mial"]\n[notify.mail]\nto = "a@b"\n',
         4, "jobs.b.notify", "no channel 'mial'", '"mail"'),
        ('[metrics]\ndirectory = "metrics"\n', 2, "metrics.directory", "plain path", "/var/lib"),
        ('[metrics]\ndirectory = "/etc/hostname"\n', 2, "metrics.directory", "not a directory", "another"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_what_to_write(
    tmp_path: Path, text: str, line: int, key: str, problem: str, hint: str
) -> None:
    with pytest.raises(MistakesError) as caught:
        loaded(tmp_path, text)
    (found,) = caught.value.mistakes
    assert (found.line, found.key.split('."')[0]) == (LINES + line, key), found
    assert problem in found.problem
    assert hint in found.hint
    assert "hunter2" not in found.sentence()


def test_what_travels_in_the_clear_is_remarked(tmp_path: Path) -> None:
    config = loaded(tmp_path, '[notify.webhook]\nurl = "http://example.org/hook"\n')
    assert ["without https" in r.problem for r in config.remarks] == [True]


@pytest.mark.parametrize("limit, expected", [("", 512), ('[limits]\nmemory = "256M"\n', 256)])
def test_the_notifier_has_as_much_memory_as_a_mail_needs(
    tmp_path: Path, limit: str, expected: int
) -> None:
    config = loaded(tmp_path, f'{limit}[notify.hook]\nkind = "webhook"\nurl = "https://h/"\n')
    users = {name: (900 + i, 900 + i) for i, name in enumerate(users_needed(config))}
    room = compile_plan(config, SYSTEM._replace(users=users)).room("notifier")
    assert room.grant.limits.memory_bytes == expected << 20
