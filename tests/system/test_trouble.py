"""What goes wrong is said in one sentence, has an exit code of its own, and heals."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from capkeep.plan.model import RoomKind
from tests.rooms.house import wait_for
from tests.system.conftest import Product
from tests.system.scenes import processes, programs, start


def engines(product: Product) -> list[int]:
    """The engines that this installation runs, in readers and keepers."""
    found = processes(product, "reader", "keeper").items()
    return [pid for pid, words in found if b"restic" in words.split(b"\0")[0]]


def rooms(product: Product) -> list[int]:
    """Every process of the rooms' users, but for the runner that waits."""
    return list(processes(product, *(kind for kind in RoomKind if kind != "runner")))


MANY = """#!/usr/bin/python3 -I
import json, os, sys
if "snapshots" not in sys.argv:
    os.execv("/usr/bin/restic", ["restic", *sys.argv[1:]])
print(json.dumps([{"id": f"{n:064x}", "time": "2026-01-01T00:00:00Z", "hostname": "house",
                   "paths": ["/srv/" + "x" * 300]} for n in range(6000)]))
"""


def slow_run(product: Product) -> "subprocess.Popen[bytes]":
    """A run whose engine has begun and stands still."""
    with open(product.source / "big", "wb") as file:
        file.writelines(os.urandom(1 << 20) for _ in range(64))
    running = start(product, "run", "--json")
    wait_for(lambda: bool(engines(product)))
    os.kill(engines(product)[0], signal.SIGSTOP)
    return running


def test_more_snapshots_than_a_message_holds_are_listed(product: Product) -> None:
    lister = Path(product.home.base, "lister")
    lister.write_text(MANY)
    lister.chmod(0o755)
    program = Path(product.home.base, "etc/capkeep.toml").read_text().split('program = "')[1]
    product.configure(program.split('"')[0], str(lister))
    (found,) = json.loads(product("snapshots", "--json").out)
    assert [s["id"] for s in found["snapshots"]] == [f"{n:064x}" for n in range(6000)]
    assert "repo: 6000 snapshots" in product("snapshots").out


def test_a_wrong_password(product: Product) -> None:
    Path(product.home.base, "etc/secrets/repo").write_text("another\n")
    done = product("run")
    assert done.code == 12, done
    assert "password" in done.out


def test_a_repository_that_is_not_there_is_never_made_by_a_run(product: Product) -> None:
    for path in sorted(product.repository.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    done = product("run")
    assert done.code == 10, done
    assert list(product.repository.rglob("*")) == []


def test_a_missing_source_makes_it_partial(product: Product) -> None:
    product.configure(f'["{product.source}"]', f'["{product.source}", "/srv/is/not/there"]')
    done = product("run")
    assert done.code == 3, done
    assert "/srv/is/not/there does not exist" in done.out


def test_an_empty_source_makes_it_partial_unless_it_may_be_empty(product: Product) -> None:
    empty = Path(product.home.base, "empty")
    empty.mkdir()
    product.configure(f'["{product.source}"]', f'["{product.source}", "{empty}"]')
    assert product("run").code == 3
    product.configure(f'"{empty}"]', f'"{empty}"]\nallow-empty = ["{empty}"]')
    done = product("run")
    assert done.code == 0, done


def test_sources_that_shrank_must_be_accepted(product: Product) -> None:
    for number in range(60):
        (product.source / str(number)).write_text("x")
    assert product("run").code == 0
    for number in range(50):
        (product.source / str(number)).unlink()
    assert product("run").code == 3
    assert product("run", "--accept-shrink").code == 0
    assert product("run").code == 0


def test_ctrl_c_ends_the_run_and_its_rooms(product: Product) -> None:
    running = slow_run(product)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == 130
    wait_for(lambda: not rooms(product))
    status = json.loads(product("history", "--json", "--limit", "1").out.splitlines()[0])
    assert "stopped" in json.dumps(status)


def test_a_run_goes_on_when_its_caller_is_lost(product: Product) -> None:
    running = slow_run(product)
    running.kill()
    running.communicate(timeout=10)
    os.kill(engines(product)[0], signal.SIGCONT)
    wait_for(lambda: not rooms(product), 60)
    assert product.newest()["paths"]


def test_a_second_run_of_the_job_is_refused_with_who_and_since_when(product: Product) -> None:
    running = slow_run(product)
    second = product("run")
    assert second.code == 4, second
    assert "being run already" in second.err + second.out
    os.kill(engines(product)[0], signal.SIGCONT)
    running.communicate(timeout=60)
    assert running.returncode == 0


def test_whatever_is_killed_the_next_run_is_complete(product: Product) -> None:
    for victim in ("engine", "reader", "vault", "runner"):
        running = slow_run(product)
        pids = engines(product) if victim == "engine" else programs(product, victim)
        os.kill(pids[0], signal.SIGKILL)
        for pid in pids[1:]:
            with contextlib.suppress(ProcessLookupError):  # some go with the first
                os.kill(pid, signal.SIGKILL)
        running.communicate(timeout=60)
        assert running.returncode not in (0, None), victim
        wait_for(lambda: not rooms(product))
        (product.source / "big").unlink()
        again = product("run", "--accept-shrink")
        assert again.code == 0, (victim, again)
        assert list((product.repository / "locks").iterdir()) == []


def test_a_step_has_a_time_limit(product: Product) -> None:
    plan = product.home.plan
    product.home.apply(plan._replace(jobs=(plan.jobs[0]._replace(timeout_seconds=3),)))
    began = time.monotonic()
    running = slow_run(product)
    running.communicate(timeout=60)
    assert running.returncode == 17
    assert time.monotonic() - began < 40
