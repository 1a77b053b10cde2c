"""What goes wrong between two hosts: each time it is said, nothing is left, and the next pull is complete."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import pytest

from tests.lab import pulled
from tests.lab.machine import Result
from tests.lab.pulled import Pair, Pull

pytestmark = pytest.mark.timeout(300)
PULLS: Final = (Pull("web1", "hosts", include=("/srv/data",)),)
SLOWLY: Final = 'upload-limit = "512KiB/s"\n'  # so there is time to interfere
BIG: Final = "head -c 6000000 /dev/urandom >/srv/data/big"
DEAD_SECONDS: Final = 30  # after which whoever hears nothing leaves
SOON: Final = 15  # seconds for processes to end that see somebody leave


@pytest.fixture(scope="module")
def shared() -> Iterator[Pair]:
    """Set up, and pulled once."""
    with pulled.pair() as made:
        pulled.set_up(made, PULLS, SLOWLY)
        assert made.pull("hosts").code == 0
        yield made


@pytest.fixture
def hosts(shared: Pair) -> Iterator[Pair]:
    """Something new to pull before the test; after it, both at rest and as they were."""
    mounts = shared.mounts()
    shared.target.ok("sh", "-c", BIG)
    yield shared
    shared.await_rest(DEAD_SECONDS + SOON)
    assert shared.mounts() == mounts
    shared.target.ok("rm", "-f", "/srv/data/big")
    done = shared.pull("hosts", "--accept-shrink")
    assert done.code == 0, done
    assert shared.server.ok("find", "/srv/pulled", "-path", "*/locks/*") == ""
    for machine in (shared.server, shared.target):
        machine.run("systemctl", "reset-failed")  # what was killed by a test has failed


class Begun:
    """A pull under way, and what it said in the end."""

    def __init__(self, hosts: Pair) -> None:
        self._hosts = hosts
        self._result: Result | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError, AssertionError, subprocess.SubprocessError):
            self._result = self._hosts.pull("hosts", seconds=150)

    def result(self) -> Result:
        """Waits until it has ended."""
        self._thread.join(160)
        assert self._result is not None, "the pull does not end"
        return self._result


@contextmanager
def under_way(hosts: Pair, *, answered: bool = True) -> Iterator[Begun]:
    """A slow pull whose engine has begun to send; `answered` unless who asked for it dies as well."""
    before = len(hosts.server.ok("find", "/srv/pulled/web1", "-type", "f").split())
    begun = Begun(hosts)
    hosts.target.wait(lambda: hosts.target.run("pgrep", "-x", "restic").code == 0)
    hosts.server.wait(
        lambda: len(hosts.server.ok("find", "/srv/pulled/web1", "-type", "f").split()) > before
    )
    yield begun
    if answered:
        begun.result()


def outcome(hosts: Pair, job: str = "hosts.web1") -> tuple[object, object]:
    """How the last run of a job ended."""
    run = hosts.last(job)
    return run["outcome"], run["failure"]


def test_a_target_out_of_reach(hosts: Pair) -> None:
    hosts.target.ok("systemctl", "stop", "ssh.service", "ssh.socket")
    done = hosts.pull("hosts")
    hosts.target.ok("systemctl", "start", "ssh.service")
    assert done.code == 15, done
    assert outcome(hosts) == ("failed", "unreachable")


def test_another_host_key_is_refused_loudly(hosts: Pair) -> None:
    place = "/etc/ssh/ssh_host_ed25519_key"
    hosts.target.ok("sh", "-c", f"mkdir /root/keys; mv {place}* /root/keys; "
                    f"ssh-keygen -q -t ed25519 -N '' -f {place}; systemctl restart ssh")  # fmt: skip
    done = hosts.pull("hosts")
    hosts.target.ok("sh", "-c", "mv /root/keys/* /etc/ssh; rmdir /root/keys; systemctl restart ssh")
    assert done.code == 16, done
    assert outcome(hosts) == ("failed", "denied")
    assert "ANOTHER HOST KEY" in done.out
    assert pulled.LOGIN not in hosts.target.journal("ssh.service").rpartition("Server listening")[2]


def test_a_login_that_is_not_let_in_any_more(hosts: Pair) -> None:
    keys = "/var/lib/capkeep/answerer/.ssh/authorized_keys"
    hosts.target.ok("mv", keys, "/root/keys")
    done = hosts.pull("hosts")
    hosts.target.ok("mv", "/root/keys", keys)
    assert done.code == 16, done
    assert outcome(hosts) == ("failed", "denied")


def test_a_target_without_capkeep(hosts: Pair) -> None:
    hosts.target.ok("sh", "-c", "mv /opt/capkeep /opt/away")
    done = hosts.pull("hosts")
    hosts.target.ok("sh", "-c", "mv /opt/away /opt/capkeep")
    assert done.code == 4, done
    assert outcome(hosts) == ("failed", "refused")


def test_a_short_cut_is_waited_out(hosts: Pair) -> None:
    with under_way(hosts) as pull:
        hosts.link.cut()
        time.sleep(5)
        hosts.link.mend()
        assert pull.result().code == 0, pull.result()


def test_a_cut_for_good_is_told(hosts: Pair) -> None:
    with under_way(hosts) as pull:
        hosts.link.cut()
        done = pull.result()
    hosts.await_rest(DEAD_SECONDS + SOON)  # the target has noticed by itself
    hosts.link.mend()
    assert done.code == 15, done
    assert outcome(hosts) == ("failed", "unreachable")


def test_a_frozen_link_is_told(hosts: Pair) -> None:
    with under_way(hosts) as pull:
        hosts.link.freeze()
        started = time.monotonic()
        done = pull.result()
        assert time.monotonic() - started < DEAD_SECONDS + SOON
    hosts.await_rest(DEAD_SECONDS + SOON)
    hosts.link.mend()
    assert done.code == 15, done
    assert outcome(hosts) == ("failed", "unreachable")


def test_a_target_that_starts_again(hosts: Pair) -> None:
    with under_way(hosts) as pull:
        hosts.target.kill()
        hosts.target.boot()
        hosts.link.plug()  # a machine that hears of a connection it does not know resets it
        assert pull.result().code == 15, pull.result()
    assert outcome(hosts) == ("failed", "unreachable")


def test_a_killed_runner_takes_the_engine_along(hosts: Pair) -> None:
    with under_way(hosts) as pull:
        hosts.server.ok("pkill", "-9", "-u", "capkeep", "-f", "capkeep.run.runner")
        started = time.monotonic()
        hosts.target.wait(lambda: hosts.target.run("pgrep", "-x", "restic").code, SOON)
        assert pull.result().code == 1, (pull.result(), time.monotonic() - started)
    assert outcome(hosts) == ("failed", "interrupted")


def test_a_full_disk_is_told(hosts: Pair) -> None:
    server = hosts.server
    server.ok("mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "none", "/srv/pulled/web1")
    server.ok("chown", "capkeep-vault:", "/srv/pulled/web1")
    try:
        server.ok("capkeep", "init", "pulled.web1")
        server.ok("sh", "-c", "head -c 254M /dev/zero >/srv/pulled/web1/filler || true")
        done = hosts.pull("hosts")
        hosts.await_rest()
    finally:
        server.ok("umount", "/srv/pulled/web1")
    assert done.code == 14, done
    assert outcome(hosts) == ("failed", "no-space")


def test_a_second_one_who_asks_disturbs_nobody(hosts: Pair) -> None:
    """Each server has a key, a reader and a repository of its own; so this is somebody with the same key."""
    with under_way(hosts) as pull:
        said = pulled.ask(hosts, "web1", {"action": "backup", "options": {}, "password": "x"})
        assert pull.result().code == 0, pull.result()
    assert '"snapshot"' not in said, said


def test_a_server_that_dies_leaves_nothing_on_the_target(hosts: Pair) -> None:
    with under_way(hosts, answered=False):
        hosts.server.kill()
        hosts.target.wait(lambda: not hosts.target.ok("sh", "-c", pulled.BUSY), DEAD_SECONDS + SOON)
        hosts.server.boot()
        hosts.link.plug()
    assert outcome(hosts) == ("failed", "interrupted")
