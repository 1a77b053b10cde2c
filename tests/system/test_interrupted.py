"""What is killed, missing or full: the record says so, nothing stays behind, and the next run heals."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import restic_programs
from tests.rooms.house import GROUP, MEMBER, House, house, wait_for
from tests.system.conftest import Product
from tests.system.scenes import (
    halted_while_reading,
    processes,
    programs,
    random_file,
    start,
)


def last_run(product: Product) -> dict[str, object]:
    newest = json.loads(product("history", "--json", "--limit", "1").out)[0]
    assert isinstance(newest, dict)
    return newest


def assert_interrupted(product: Product) -> None:
    """The record knows that the last run was cut off, and says so to whoever asks."""
    run = last_run(product)
    assert (run["outcome"], run["failure"]) == ("failed", "interrupted"), run
    status, history = product("status"), product("history")
    assert status.code == 1, status
    assert "interrupted" in status.out
    assert "interrupted" in history.out


def assert_healed(product: Product) -> None:
    done = product("run", "--accept-shrink")
    assert done.code == 0, done
    assert last_run(product)["outcome"] == "complete"
    assert product("status").code == 0
    assert list((product.repository / "locks").iterdir()) == []


def test_a_runner_that_is_killed_leaves_an_interrupted_run(product: Product) -> None:
    big = product.source / "big"
    random_file(big, 128)
    running, engine = halted_while_reading(product, big)
    assert list((product.repository / "locks").iterdir()) != []
    for pid in programs(product, "runner"):
        os.kill(pid, signal.SIGKILL)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 1
    assert b"capkeep status" in err
    wait_for(lambda: engine not in processes(product))
    assert_interrupted(product)
    assert_healed(product)


def mounts_below(base: str) -> list[str]:
    """Of all mount namespaces, the processes that have a mount of this installation in theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if f" {base}/" in (entry / "mounts").read_text():
                    found.append(entry.name)
            except OSError:
                continue  # it has just ended
    return found


def test_doors_that_are_killed_leave_nothing_behind() -> None:
    with house() as home:
        product = Product(home)
        with home.doors() as doors:
            assert product("init").code == 0
            big = product.source / "big"
            random_file(big, 128)
            running, _ = halted_while_reading(product, big)
            assert mounts_below(home.base) != []
            doors.send_signal(signal.SIGKILL)
            running.communicate(timeout=30)
            assert running.returncode == 1
            wait_for(lambda: not processes(product), 5)
            assert mounts_below(home.base) == []
            assert_interrupted(product)
            refused = product("run")
            assert refused.code == 4, refused
            assert "doors" in refused.err
        with home.doors():
            assert_healed(product)


STUBBORN = """#!/bin/sh
trap '' TERM INT HUP
case " $* " in
*" backup "*) while :; do :; done ;;
esac
exec {restic} "$@"
"""


def with_engine(product: Product, text: str) -> Path:
    """Another engine of root's, around the real one."""
    restic = restic_programs()["0.14"]
    program = Path(product.home.base, "engine")
    program.write_text(text.format(restic=restic))
    program.chmod(0o755)
    product.configure(str(restic), str(program))
    return program


def is_stubborn(product: Product) -> bool:
    return any(b"/engine\0" in w and b"backup" in w for w in processes(product).values())


def gone(product: Product) -> bool:
    kinds = [set(programs(product, kind)) for kind in ("reader", "vault")]
    return not any(kinds) and not is_stubborn(product)


def test_an_engine_that_will_not_stop_is_ended_by_ctrl_c(product: Product) -> None:
    with_engine(product, STUBBORN)
    running = start(product, "run", "--json")
    wait_for(lambda: is_stubborn(product))
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == 130
    wait_for(lambda: gone(product), 10)
    assert last_run(product)["failure"] == "stopped"


EARLY = """
import builtins, os, signal, sys
real = builtins.__import__
def late(name, *more):
    if name == "capkeep.report.terminal":  # what is loaded when the request has been sent
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *more)
builtins.__import__ = late
sys.path.append(sys.argv.pop(1))
from capkeep.__main__ import main
main()
"""


def test_ctrl_c_stops_the_run_however_early_it_comes(product: Product) -> None:
    with_engine(product, STUBBORN)
    words = product.home.command("run", "--json")
    early = [
        words[0],
        "-I",
        "-S",
        "-c",
        EARLY,
        product.home.package,
        *words[words.index("--prefix") :],
    ]
    done = subprocess.run(
        early, user=MEMBER, group=MEMBER, extra_groups=[GROUP], cwd="/", timeout=60,
        env={"PATH": "/usr/sbin:/usr/bin"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130, done
    wait_for(lambda: gone(product), 10)
    assert last_run(product)["failure"] == "stopped"


SECOND = """
[repositories.second]
engine = "restic"
location = "{base}/repositories/second"
password = {{ file = "{base}/etc/secrets/repo" }}
"""


def test_a_runner_that_is_ended_goes_on_to_no_other_repository(product: Product) -> None:
    base = product.home.base
    product.configure("[jobs.job]", SECOND.format(base=base) + "\n[jobs.job]")
    product.configure('repositories = ["repo"]', 'repositories = ["repo", "second"]')
    with_engine(product, STUBBORN)
    running = start(product, "run", "--json")
    wait_for(lambda: is_stubborn(product))
    for pid in programs(product, "runner"):
        os.kill(pid, signal.SIGTERM)
    out, _ = running.communicate(timeout=30)
    wait_for(lambda: gone(product), 10)
    ends = [e for e in map(json.loads, out.splitlines()) if e["event"] == "step-end"]
    failures = [(e["repository"], e["failure"]) for e in ends]
    assert failures == [("repo", "interrupted"), ("second", "stopped")]
    assert last_run(product)["outcome"] == "failed"


def test_an_engine_that_will_not_stop_is_ended_by_the_time_limit(product: Product) -> None:
    with_engine(product, STUBBORN)
    plan = product.home.plan = product.home.compiled()
    product.home.apply(plan._replace(jobs=(plan.jobs[0]._replace(timeout_seconds=3),)))
    began = time.monotonic()
    done = product("run")
    assert done.code == 17, done
    assert time.monotonic() - began < 30
    wait_for(lambda: gone(product), 10)


def test_a_missing_engine_is_said_in_one_sentence(product: Product) -> None:
    program = with_engine(product, '#!/bin/sh\nexec {restic} "$@"\n')
    assert product("run").code == 0
    program.unlink()
    done = product("run", "--json")
    assert done.code == 1, done
    end = json.loads(done.out.splitlines()[-2])
    assert str(program) in end["text"], end
    assert "Traceback" not in done.out + done.err + product.home.said()
    assert "\n" not in end["text"]


@pytest.fixture
def small_cache() -> Iterator[Product]:
    """An installation whose reader has a cache on a disk of its own, with 1 MiB."""
    with house() as home, home.doors():
        product = Product(home)
        assert product("init").code == 0
        cache = cache_of(home)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", cache]
        subprocess.run(mount, check=True, timeout=20)
        try:
            state = next(r.grant for r in home.plan.rooms if r.kind == "reader")
            os.chown(cache, state.uid, state.gid)
            yield product
        finally:
            subprocess.run(["umount", "-l", cache], check=True, timeout=20)


def cache_of(home: House) -> str:
    return next(r.grant.write[0] for r in home.plan.rooms if r.kind == "reader")


def test_a_full_cache_is_said_in_one_sentence(small_cache: Product) -> None:
    cache = cache_of(small_cache.home)
    with open(f"{cache}/filling", "wb") as file:
        file.write(bytes(1 << 20))
    random_file(small_cache.source / "big", 256)  # longer than the second between two looks
    done = small_cache("run", "--json")
    end = json.loads(done.out.splitlines()[-2])
    assert done.code == 14, done
    assert cache in end["text"]
    assert "\n" not in end["text"]
    (Path(cache) / "filling").unlink()
