"""Those who are to be told are told, by real servers' word, and no backup waits for them."""

import gzip
import importlib.util
import json
import os
import shutil
import sqlite3
import time
import uuid
from pathlib import Path

import pytest

from tests.system.conftest import Product, Said
from tests.system.outside import (
    PASSWORD,
    USER,
    Authority,
    authority,
    mail_server,
    secret,
    until,
    web_server,
)
from tests.system.test_apply import Host
from tests.system.test_apply import host as host
from tests.system.test_user_mode import User
from tests.system.test_user_mode import user as user


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    for path in (folder, *folder.parents):
        if path != Path("/tmp") and str(path).startswith("/tmp"):
            path.chmod(0o755)
    return authority(folder)


@pytest.fixture
def ca(product: Product, made: Authority) -> str:
    """The authority's certificate where the notifier may read it."""
    path = Path(product.home.base, "etc/ca.pem")
    path.write_bytes(made.ca.read_bytes())
    return str(path)


def tell(product: Product, text: str) -> None:
    """Add channels to the configuration."""
    product.configure("[engines.restic]", text + "\n[engines.restic]")
    said = product.home.said()
    until(
        lambda: (
            product.home.places.run and os.path.exists(f"{product.home.places.run}/notifier.sock")
        )
    )
    assert "not used" not in said, said


def break_job(product: Product) -> None:
    """From now on something is missing: each run is partial."""
    product.configure(
        f'include = ["{product.source}"]',
        f'include = ["{product.source}", "{product.home.base}/gone"]',
    )


def states(product: Product) -> list[tuple[str, str, str]]:
    with sqlite3.connect(f"file:{product.home.places.records}/records.db?mode=ro", uri=True) as db:
        return db.execute("SELECT channel, state, text FROM notice ORDER BY number").fetchall()


def settled(product: Product, *expected: tuple[str, str]) -> None:
    until(lambda: [(c, s) for c, s, _ in states(product)] == list(expected), 30)


MAIL = """
[notify.mail]
to = ["admin@example.org", "second@example.org"]
from = "backup@example.org"
smtp = "localhost:{port}"
when = "always"
retry-for = "20s"
"""


# In "tls" the server does not know that the whole connection is encrypted.
@pytest.mark.filterwarnings("ignore:Requiring AUTH")
@pytest.mark.parametrize("encrypted", ["starttls", "tls"])
def test_a_mail_over_tls_with_a_login_tells_it_all(
    product: Product, made: Authority, ca: str, encrypted: str
) -> None:
    with mail_server(encrypted, made) as (box, port):
        word = secret(product.home.base, "mail", PASSWORD)
        tell(product, MAIL.format(port=port) + f"""
tls = "{encrypted}"
user = "{USER}"
password = {word}
ca-file = "{ca}"
""")  # fmt: skip
        break_job(product)
        done = product("run")
        assert done.code == 3, done
        until(lambda: box.mails)
        settled(product, ("mail", "delivered"))
    (mail,) = box.mails
    assert box.encrypted == [encrypted == "starttls"]
    assert mail["To"] == "admin@example.org, second@example.org"
    assert mail["From"] == "backup@example.org"
    assert mail["Subject"].startswith("[capkeep] PARTIAL: backup of job on ")
    assert mail["Auto-Submitted"] == "auto-generated"
    assert "<capkeep." in mail["List-Id"]
    assert mail["Message-ID"]
    assert mail["X-Capkeep-Outcome"] == "partial"
    text = mail.get_body(("plain",))
    page = mail.get_body(("html",))
    assert text is not None
    assert page is not None
    for part in (text.get_content(), page.get_content()):
        assert "gone does not exist" in part
        assert "have proven that they had no more rights" in part
        assert "capkeep log" in part
    (log,) = mail.iter_attachments()
    assert log.get_filename().startswith("capkeep-")
    assert "gone" in log.get_content()
    assert PASSWORD not in box.raw[0].decode()


def test_a_long_log_is_compressed_and_whole(product: Product) -> None:
    for number in range(3000):
        Path(product.source, f"unreadable-{number}-{'x' * 60}").symlink_to("/")
    with mail_server("none") as (box, port):
        tell(product, MAIL.format(port=port))
        break_job(product)
        log = Path(product.home.places.log)
        assert product("run").code == 3
        until(lambda: box.mails)
        # The room's messages alone are too few: a log of many lines is made by hand and told again.
        (run,) = (
            log.glob("*.jsonl")
            if len(list(log.glob("*.jsonl"))) == 1
            else sorted(log.glob("*.jsonl"))[-1:]
        )
        with run.open("a") as file:
            for number in range(5000):
                file.write(
                    json.dumps({"time": 1.0, "event": "message", "text": f"line {number}"}) + "\n"
                )
        with sqlite3.connect(f"{product.home.places.records}/records.db") as db:
            db.execute("UPDATE notice SET state = 'pending', busy_until = 0")
        assert product("run").code == 3
        until(lambda: len(box.mails) == 3)
    again = next(m for m in box.mails[1:] if m["Message-ID"] == box.mails[0]["Message-ID"])
    (attached,) = again.iter_attachments()
    assert attached.get_filename().endswith(".log.gz")
    assert attached.get_content_type() == "application/gzip"
    whole = gzip.decompress(attached.get_content()).decode()
    assert all(f"line {number}" in whole for number in (0, 2500, 4999))


def test_a_server_that_asks_to_come_again_gets_it_a_little_later(product: Product) -> None:
    with mail_server("none") as (box, port):
        box.answers = ["451 4.7.1 greylisted, come again", "451 4.7.1 greylisted, come again"]
        tell(product, MAIL.format(port=port))
        assert product("run").code == 0
        settled(product, ("mail", "delivered"))
    assert box.attempts == 3
    assert len(box.mails) == 1
    assert "[capkeep] complete: backup of job" in box.mails[0]["Subject"]


def test_what_is_refused_is_recorded_shown_and_told_with_the_next_run(product: Product) -> None:
    with mail_server("none") as (box, port):
        box.answers = ["550 5.7.1 not today"]
        tell(product, MAIL.format(port=port))
        assert product("run").code == 0
        until(lambda: states(product) and "550" in states(product)[0][2])
        assert box.attempts == 1, "a final answer is not asked for again"
        shown = product("status")
        assert shown.code == 0, shown
        assert "could not be told of 1 run" in shown.out
        assert "550 5.7.1 not today" in shown.out
        (told,) = json.loads(product("status", "--json").out)["undelivered"]
        assert (told["channel"], told["attempts"]) == ("mail", 1)
        assert product("run").code == 0
        settled(product, ("mail", "delivered"), ("mail", "delivered"))
    assert len({m["Message-ID"] for m in box.mails}) == 2
    assert "notify" not in product("status").out


def test_nobody_waits_for_a_server_that_hangs(product: Product) -> None:
    with mail_server("none") as (box, port), web_server() as web:
        box.silent = 15
        tell(product, MAIL.format(port=port) + f"""
[notify.webhook]
url = "{web.url}/hook"
when = "always"
""")  # fmt: skip
        started = time.monotonic()
        assert product("run").code == 0
        assert time.monotonic() - started < 13
        assert product("run").code == 0, "and the next run begins while it hangs"
        until(lambda: len(web.asked) == 2, 40)
        until(lambda: len(box.mails) == 2, 60)


@pytest.mark.parametrize("where", ["nobody", "no-tls", "other-authority"])
def test_what_cannot_be_reached_or_trusted_fails_no_run(
    product: Product, made: Authority, where: str
) -> None:
    with web_server(made if where == "other-authority" else None) as web:
        port = 1 if where == "nobody" else web.port
        tell(product, f"""
[notify.webhook]
url = "https://localhost:{port}/hook"
when = "always"
retry-for = "2s"
""")  # fmt: skip
        assert product("run").code == 0
        until(lambda: states(product) and states(product)[0][2], 30)
        ((_, state, text),) = states(product)
        assert web.asked == []
    assert state == "pending"
    expected = {"nobody": "refused", "no-tls": "SSL", "other-authority": "not trusted"}
    assert expected[where] in text, text


def test_healthchecks_gets_start_and_end_with_one_run_id(
    product: Product, made: Authority, ca: str
) -> None:
    with web_server(made) as web:
        where = secret(product.home.base, "ping", f"{web.url}/ping/3fa85f64-key/job?create=1")
        tell(product, f"""
[notify.healthchecks]
url = {where}
ca-file = "{ca}"
""")  # fmt: skip
        assert product("run").code == 0
        until(lambda: len(web.asked) == 2)
        break_job(product)
        web.statuses = [200, 503]
        assert product("run").code == 3
        until(lambda: len(web.asked) == 5)
        settled(product, ("healthchecks", "delivered"), ("healthchecks", "delivered"))
    paths = [asked.path for asked in web.asked]
    ends = [p.partition("?")[0].removeprefix("/ping/3fa85f64-key/job") for p in paths]
    assert sorted(ends[:2]) == ["/0", "/start"]
    assert sorted(ends[2:]) == ["/3", "/3", "/start"], "a partial run is a failure, with its status"
    ids = [dict(q.split("=") for q in p.partition("?")[2].split("&")) for p in paths]
    assert {i["create"] for i in ids} == {"1"}
    first, second = {i["rid"] for i in ids[:2]}, {i["rid"] for i in ids[2:]}
    assert len(first) == len(second) == 1
    assert first != second
    assert uuid.UUID(first.pop()).version == 4
    body = next(a.body.decode() for a in web.asked[2:] if "/3?" in a.path)
    assert "gone does not exist" in body
    assert "step-end" in body, "and the log"


def test_a_webhook_gets_the_run_as_data_with_secret_headers(product: Product) -> None:
    with web_server() as web:
        base = product.home.base
        tell(product, f"""
[notify.chat]
kind = "webhook"
url = {secret(base, "hook", f"{web.url}/hook/T0KEN-0123456789")}
headers.Authorization = {secret(base, "header", "Bearer 9876543210-secret")}
headers.X-Plain = "plain"
""")  # fmt: skip
        assert product("run").code == 0
        break_job(product)
        assert product("run").code == 3
        until(lambda: web.asked)
        settled(product, ("chat", "delivered"))
    (asked,) = web.asked
    assert asked.path == "/hook/T0KEN-0123456789"
    assert asked.headers["Authorization"] == "Bearer 9876543210-secret"
    assert asked.headers["X-Plain"] == "plain"
    told = asked.json()
    assert told["event"] == "end"
    run = told["run"]
    assert isinstance(run, dict)
    assert (run["outcome"], run["job"], run["exit_code"]) == ("partial", "job", 3)
    steps = told["steps"]
    assert isinstance(steps, list)
    assert steps[0]["totals"]["total_files"] > 0


def test_ntfy_gets_a_short_message(product: Product) -> None:
    with web_server() as web:
        token = secret(product.home.base, "token", "tk_0123456789")
        tell(product, f'\n[notify.ntfy]\nurl = "{web.url}/backups"\ntoken = {token}\n')
        break_job(product)
        assert product("run").code == 3
        until(lambda: web.asked)
    (asked,) = web.asked
    assert asked.headers["Authorization"] == "Bearer tk_0123456789"
    assert asked.headers["Priority"] == "high"
    assert "PARTIAL: backup of job" in asked.headers["Title"]
    assert b"gone does not exist" in asked.body


def test_change_tells_of_the_first_failure_and_of_the_recovery(product: Product) -> None:
    with web_server() as web:
        tell(product, f'\n[notify.webhook]\nurl = "{web.url}/"\nwhen = "change"\n')
        assert product("run").code == 0
        hidden = Path(product.home.base, "gone")
        break_job(product)
        for _ in range(3):
            assert product("run").code == 3
        hidden.mkdir()
        (hidden / "file").write_text("back")
        for _ in range(2):
            assert product("run", "--accept-shrink").code == 0
        until(lambda: len(web.asked) == 2)
        settled(product, ("webhook", "delivered"), ("webhook", "delivered"))
    runs = [asked.json()["run"] for asked in web.asked]
    assert [run["outcome"] for run in runs if isinstance(run, dict)] == ["partial", "complete"]


def test_channels_tell_of_their_jobs_alone(product: Product) -> None:
    with web_server() as web:
        tell(product, f"""
[jobs.other]
repositories = ["repo"]
include = ["{product.source}"]
notify = ["second"]
[notify.first]
kind = "webhook"
url = "{web.url}/first"
when = "always"
[notify.second]
kind = "webhook"
url = "{web.url}/second"
jobs = ["other"]
when = "always"
[notify.third]
kind = "webhook"
url = "{web.url}/third"
when = "failure"
""")  # fmt: skip
        assert product("run").code == 0
        until(lambda: len(web.asked) == 2)
        time.sleep(0.5)
    told = sorted((a.path, str(a.json()["run"]["job"])) for a in web.asked)  # type: ignore[index]
    assert told == [("/first", "job"), ("/second", "other")]


def test_notify_test_says_what_happened(product: Product) -> None:
    with mail_server("none") as (box, port), web_server() as web:
        tell(product, MAIL.format(port=port) + f"""
[notify.good]
kind = "webhook"
url = {secret(product.home.base, "hook", f"{web.url}/0123456789-hook")}
[notify.hc]
kind = "healthchecks"
url = "{web.url}/ping"
""")  # fmt: skip
        done = product("notify", "test")
        assert done.code == 0, done
        assert done.out.count(": told: ") == 3
        assert box.mails[0]["Subject"].startswith("[capkeep] test from ")
        assert "/ping/log" in [a.path for a in web.asked]
        web.statuses = [404]
        refused = product("notify", "test", "good")
        assert refused.code == 1, refused
        assert "good: NOT TOLD: HTTP 404" in refused.out
        assert "0123456789" not in repr(refused)
        assert product("notify", "test", "nobody").code == 2
    assert product("status", "--json").code == 1, "a test is no run: there is none yet"
    assert states(product) == []


def test_no_secret_of_a_channel_is_anywhere(product: Product) -> None:
    word = "a-secret-of-a-channel-4711"
    with web_server() as web:
        web.statuses = [500] * 50
        tell(product, f"""
[notify.webhook]
url = {secret(product.home.base, "hook", f"{web.url}/{word}")}
when = "always"
retry-for = "1s"
""")  # fmt: skip
        outputs: list[Said] = [product("run"), product("notify", "test")]
        until(lambda: states(product) and states(product)[0][2])
        outputs += [product("status"), product("log"), product("history", "--json")]
        outputs.append(product.root("config", "show"))
    base = Path(product.home.base)
    assert any(word in asked.path for asked in web.asked)
    assert not [said for said in outputs if word in repr(said)]
    held = [
        path
        for path in base.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes() and "secrets" not in path.parts
    ]
    assert held == []


def test_a_run_that_was_killed_is_told_of_with_the_next_one(product: Product) -> None:
    with web_server() as web:
        tell(product, f'\n[notify.webhook]\nurl = "{web.url}/"\n')
        assert product("run").code == 0
        with sqlite3.connect(f"{product.home.places.records}/records.db") as db:
            db.execute(
                "INSERT INTO run (id, job, started, action, text, reasons, trigger_uid,"
                " trigger_user, version) VALUES ('cut-off', 'job', ?, 'backup', '', '[]', 0, '', '')",
                (time.time(),),
            )
        assert product("run").code == 0
        until(lambda: web.asked)
        settled(product, ("webhook", "delivered"))
        assert product("run").code == 0
        time.sleep(0.5)
    (asked,) = web.asked
    run = asked.json()["run"]
    assert isinstance(run, dict)
    assert (run["id"], run["failure"]) == ("cut-off", "interrupted")


def test_a_program_that_takes_mail_gets_it_in_the_room(product: Product) -> None:
    """A mail client that needs no rights of its owner's: it has a configuration and the network."""
    base = product.home.base
    program, settings = Path(base, "mailer"), Path(base, "etc/mailer.conf")
    program.write_text(
        "#!/usr/bin/python3 -I\n"
        "import smtplib, sys\n"
        f"port = int(open({str(settings)!r}).read())\n"
        "assert sys.argv[1:4] == ['-i', '-f', 'capkeep@' + sys.argv[3].partition('@')[2]], sys.argv\n"
        "with smtplib.SMTP('localhost', port, 'here') as server:\n"
        "    server.sendmail(sys.argv[3], sys.argv[5:], sys.stdin.buffer.read().replace(b'\\n', b'\\r\\n'))\n"
    )
    program.chmod(0o755)
    with mail_server("none") as (box, port):
        settings.write_text(f"{port}\n")
        tell(product, f"""
[notify.mail]
to = "admin@example.org"
sendmail = "{program}"
sendmail-files = ["{settings}"]
when = "always"
""")  # fmt: skip
        assert product("run").code == 0
        until(lambda: states(product)[0][2])
        assert states(product)[0][1] == "delivered", states(product)
    (mail,) = box.mails
    assert "complete: backup of job" in mail["Subject"]


APPRISE = (
    "apprise", "requests", "requests_oauthlib", "oauthlib", "certifi", "charset_normalizer", "idna",
    "urllib3", "markdown", "yaml", "_yaml", "click",
)  # fmt: skip


def test_apprise_is_asked_where_it_is_installed(product: Product) -> None:
    with web_server() as web:
        address = secret(product.home.base, "apprise", f"json://localhost:{web.port}/0123456789")
        tell(product, f'\n[notify.apprise]\nurls = [{address}]\nretry-for = "1s"\n')
        missing = product("notify", "test")
        assert missing.code == 1
        assert "capkeep[apprise]" in missing.out
        site = Path(importlib.util.find_spec("apprise").origin or "").parents[1]  # type: ignore[union-attr]
        for name in APPRISE:
            if (site / name).is_dir():
                shutil.copytree(site / name, Path(product.home.package, name))
        break_job(product)
        assert product("run").code == 3
        until(lambda: web.asked, 40)
        settled(product, ("apprise", "delivered"))
    told = web.asked[-1].json()
    assert "PARTIAL: backup of job" in str(told["title"])
    assert told["type"] == "failure"


def test_an_audit_looks_into_the_notifier_too(host: Host) -> None:
    text = host.config.read_text()
    host.config.write_text(text + '\n[notify.webhook]\nurl = "http://localhost:1/"\n')
    assert host("apply").code == 0
    said = host("audit", "--json")
    assert said.code == 0, said
    rooms = {(r["room"], r["process"]) for r in json.loads(said.out)["rooms"]}
    assert ("notifier", "room") in rooms


def test_a_user_without_root_is_told_too(user: User) -> None:
    with web_server() as web:
        config = user.home / ".config" / "capkeep" / "capkeep.toml"
        with config.open("a") as file:
            file.write(f'\n[notify.webhook]\nurl = "{web.url}/"\nwhen = "always"\n')
        assert user("apply").code == 0
        assert user("init").code == 0
        done = user("run")
        assert done.code == 0, done
        until(lambda: web.asked)
    run = web.asked[0].json()["run"]
    assert isinstance(run, dict)
    assert run["outcome"] == "complete"
