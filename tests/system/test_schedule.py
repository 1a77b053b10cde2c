"""`capkeep schedule`: scheduled runs where systemd has no timers, by a real installation."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.run.watch import MEMORY
from tests.rooms.house import GROUP, MEMBER, UIDS, House, RoomKind, house, wait_for
from tests.system.conftest import Product
from tests.system.outside import web_server
from tests.system.scenes import halted_while_reading, random_file

INCLUDE = "include = ["
PATIENCE = '[watch]\nevery = "2s"\ngrace = "3s"\n\n[jobs.job]'


@pytest.fixture
def quiet() -> Iterator[Product]:
    """An installation with a repository, and nobody who opens its doors."""
    with house() as home:
        product = Product(home)
        with home.doors():
            assert product("init").code == 0
        yield product


def plan_for(product: Product, *times: str, more: str = "") -> None:
    product.configure("[jobs.job]", PATIENCE)
    product.configure(INCLUDE, f"schedule = {json.dumps(times)}\n{more}\n{INCLUDE}")


@contextlib.contextmanager
def scheduler(product: Product) -> Iterator["subprocess.Popen[bytes]"]:
    """`capkeep schedule --json`, whose words go to a file; asked to end, and ended."""
    with open(f"{product.home.base}/said", "ab") as said:
        process = subprocess.Popen(
            product.home.command("schedule", "--json"), stdout=said, stderr=said, cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin"},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(90)
        finally:
            process.kill()


def events(product: Product, *kinds: str) -> list[dict[str, object]]:
    """What the scheduler itself said."""
    found = []
    for line in Path(product.home.base, "said").read_text().splitlines():
        if line.startswith("{"):
            event = json.loads(line)
            if event["event"] in kinds and "job" in event:
                found.append(event)
    return found


def recorded(home: House) -> list[dict[str, object]]:
    said = subprocess.run(
        home.command("--json", "history", "--limit", "500"),
        capture_output=True,
        timeout=60,
        check=True,
    )
    return [r for r in reversed(json.loads(said.stdout)) if r["action"] == "backup"]


def test_each_time_has_one_run_and_a_signal_ends_it(quiet: Product) -> None:
    plan_for(quiet, "*:*:0/6", "*:*:0/12")
    with scheduler(quiet) as process:
        time.sleep(30)
        process.terminate()
        assert process.wait(60) == 0
    runs = recorded(quiet.home)
    times = [int(float(str(r["started"])) // 6) for r in runs]
    assert times == list(range(times[0], times[-1] + 1))
    assert len(times) >= 4
    assert {r["outcome"] for r in runs[:-1]} == {"complete"}
    assert not os.path.exists(quiet.home.places.runner_socket)


def test_a_time_without_a_run_is_missed_once(quiet: Product) -> None:
    plan_for(quiet, "*:*:0/15")
    # Doors that are nobody's: whoever asks for a run is refused.
    os.makedirs(quiet.home.places.runner_socket)
    with scheduler(quiet):
        wait_for(lambda: bool(recorded(quiet.home)), 45)
        time.sleep(8)
        found = recorded(quiet.home)
        os.rmdir(quiet.home.places.runner_socket)
        wait_for(lambda: recorded(quiet.home)[-1]["outcome"] == "complete", 40)
    assert {r["outcome"] for r in found} == {"missed"}
    whole = recorded(quiet.home)
    due = [int(float(str(r["started"])) // 15) for r in whole]
    assert len(due) == len(set(due))
    assert oct(Path(quiet.home.places.records, MEMORY).stat().st_uid) == oct(UIDS[RoomKind.RUNNER])


def test_what_was_due_while_nobody_scheduled_is_made_up_for_once(quiet: Product) -> None:
    plan_for(quiet, "*:*:0/20")
    with scheduler(quiet):
        wait_for(lambda: bool(events(quiet, "end")), 40)
    before = len(recorded(quiet.home))
    time.sleep(41 - time.time() % 20)  # two times have passed, and the next is far
    with scheduler(quiet):
        wait_for(lambda: len(recorded(quiet.home)) > before, 10)
        time.sleep(5)
        found = [r["started"] for r in recorded(quiet.home)]
        assert len(found) == before + 1, found
    assert {r["outcome"] for r in recorded(quiet.home)} == {"complete"}


def test_a_run_that_still_goes_on_stands_for_the_next_and_is_stopped_with_us(
    quiet: Product,
) -> None:
    random_file(quiet.source / "big", 400)
    plan_for(quiet, "*:*:0/2")
    with scheduler(quiet) as process:
        wait_for(lambda: bool(events(quiet, "still-running")), 40)
        process.terminate()
        process.wait(60)
    (run, *_) = [r for r in recorded(quiet.home) if r["outcome"] != "complete"] or recorded(
        quiet.home
    )
    assert run["failure"] in {"stopped", None}
    locks = quiet.repository / "locks"
    assert list(locks.iterdir()) == []


def test_only_root_and_the_schedule_leave_out_a_run(product: Product) -> None:
    request = {"action": "leave-out", "jobs": ["job"], "kind": "backup", "why": "on battery"}
    assert product.home.ask(request)[-1]["exit_code"] == 0
    code = f"""
import json, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect({product.home.places.runner_socket!r})
s.sendall(json.dumps({request!r}).encode() + b"\\n")
print([json.loads(x) for x in s.makefile()][-1]["exit_code"])
"""
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code], user=MEMBER, group=MEMBER, extra_groups=[GROUP], timeout=30,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "2", done
    said = json.loads(product("--json", "history").out)
    assert [(r["action"], r["outcome"], r["text"]) for r in said if "skip" in r["action"]] == [
        ("skip-backup", "skipped", "on battery")
    ]
    assert product("status").code == 1  # it has never run: a run that was left out changes nothing


def test_the_whole_run_has_one_time_limit(product: Product) -> None:
    big = product.source / "big"
    random_file(big, 64)
    other = Path(product.home.base, "repositories", "two")
    product.configure(
        "[jobs.job]",
        f'[repositories.two]\nengine = "restic"\nlocation = "{other}"\n'
        f'password = {{ file = "{product.home.base}/etc/secrets/repo" }}\n\n[jobs.job]',
    )
    product.configure('repositories = ["repo"]', 'repositories = ["repo", "two"]')
    assert product("init", "two").code == 0
    plan = product.home.compiled()
    product.home.apply(plan._replace(jobs=(plan.jobs[0]._replace(timeout_seconds=8),)))
    time.sleep(2)  # until the doors have it
    started = time.monotonic()
    running, _ = halted_while_reading(product, big)
    out, _ = running.communicate(timeout=60)
    assert time.monotonic() - started < 40
    lines = [json.loads(line) for line in out.splitlines()]
    ends = [m for m in lines if m["event"] == "step-end"]
    assert [(m["repository"], m["failure"]) for m in ends] == [
        ("repo", "timeout"),
        ("two", "timeout"),
    ]


def test_a_missed_run_can_be_looked_at(quiet: Product) -> None:
    plan_for(quiet, "*:*:0/10")
    os.makedirs(quiet.home.places.runner_socket)
    with scheduler(quiet):
        wait_for(lambda: bool(recorded(quiet.home)), 45)
    run = str(recorded(quiet.home)[0]["id"])
    said = quiet.root("log", run)
    assert said.code == 0, said
    assert "it was due at" in said.out
    assert quiet.root("log", "--json", run).code == 0
    status = quiet.root("status")
    assert status.code == 1
    assert "missed" in status.out


def test_whoever_wants_to_know_is_told_of_a_missed_run(quiet: Product) -> None:
    with web_server() as web:
        channel = f'[notify.chat]\nkind = "webhook"\nurl = "{web.url}/hook"\n'
        quiet.configure("[engines.restic]", f"{channel}\n[engines.restic]")
        plan_for(quiet, "*:*:0/15")
        os.makedirs(quiet.home.places.runner_socket)  # no door opens
        with scheduler(quiet):
            wait_for(lambda: bool(recorded(quiet.home)), 45)
            os.rmdir(quiet.home.places.runner_socket)
            wait_for(lambda: bool(web.asked), 60)
    told = web.asked[0].json()["run"]
    assert isinstance(told, dict)
    assert (told["job"], told["action"], told["outcome"]) == ("job", "backup", "missed")


def test_a_second_signal_ends_it_at_once(quiet: Product) -> None:
    plan_for(quiet, "03:00")
    with scheduler(quiet) as process:
        wait_for(lambda: os.path.exists(quiet.home.places.runner_socket))
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
