"""What the kernel says of real processes."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from capkeep.kernel import libc
from capkeep.kernel.facts import CAPABILITIES, Facts, host_namespaces, read_facts
from capkeep.kernel.mounts import unshare_mounts
from capkeep.kernel.process import PR_SET_DUMPABLE, Child, hide_memory, spawn

SETPRIV = ("/usr/bin/setpriv", "--reuid=61501", "--regid=61502", "--clear-groups")
SLEEP = ("/usr/bin/sleep", "30")
ENV = {"PATH": "/usr/bin:/bin"}


def facts_of(*argv: str, prepare: Callable[[], None] | None = None, ready: str = "sleep") -> Facts:
    """Facts of a program once it runs under the name `ready`."""
    child = spawn(argv, env=ENV, prepare=prepare)
    try:
        wait_for(child, ready)
        return read_facts(child.pid, host_namespaces())
    finally:
        child.kill()


def wait_for(child: Child, name: str) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child.pid}/comm").read_text() != f"{name}\n":
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_own_facts_are_those_of_proc() -> None:
    # A test that was somebody else for a while has lost it (prctl(2)).
    libc.prctl("PR_SET_DUMPABLE", PR_SET_DUMPABLE, 1)
    facts = read_facts(None, host_namespaces())
    assert facts.pid == os.getpid()
    assert facts.uids == (os.getuid(), os.geteuid(), os.geteuid(), os.geteuid())
    assert facts.separated == ()
    assert facts.dumpable is True
    assert "lo" in facts.interfaces
    assert dict(facts.namespaces)["net"] == os.stat("/proc/self/ns/net").st_ino


def test_every_capability_of_this_kernel_has_a_name() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert len(CAPABILITIES) > last


def test_users_and_capability_sets_are_told_apart() -> None:
    facts = facts_of(
        *SETPRIV, "--inh-caps=-all,+dac_read_search,+fowner", "--ambient-caps=-all,+dac_read_search",
        "--bounding-set=-all,+dac_read_search,+fowner", "--no-new-privs", "--", *SLEEP,
    )  # fmt: skip
    assert (facts.uids, facts.gids, facts.groups) == ((61501,) * 4, (61502,) * 4, ())
    assert facts.inheritable == ("CAP_DAC_READ_SEARCH", "CAP_FOWNER")
    assert facts.ambient == facts.permitted == facts.effective == ("CAP_DAC_READ_SEARCH",)
    assert facts.bounding == ("CAP_DAC_READ_SEARCH", "CAP_FOWNER")
    assert facts.no_new_privs
    assert facts.seccomp == read_facts(None, ()).seccomp, "as this host has it"


def test_groups_are_seen() -> None:
    facts = facts_of(
        "/usr/bin/setpriv", "--reuid=61501", "--regid=61502", "--groups=42,43", "--", *SLEEP
    )
    assert facts.groups == (42, 43)


def test_namespaces_interfaces_and_mounts_of_a_separated_process() -> None:
    facts = facts_of(
        "/usr/bin/unshare", "--net", "--mount", "--uts", "--ipc", "/bin/sh", "-c",
        "mount -o remount,ro,bind / && exec sleep 30",
    )  # fmt: skip
    assert facts.separated == ("ipc", "mnt", "net", "uts")
    assert facts.interfaces == ("lo",)
    assert "/" not in facts.writable


def test_a_mount_that_is_covered_is_not_writable() -> None:
    facts = facts_of(
        "/usr/bin/unshare", "--mount", "/bin/sh", "-c",
        "mount -t tmpfs rw /mnt && mount -t tmpfs -o ro ro /mnt && exec sleep 30",
    )  # fmt: skip
    assert "/mnt" not in facts.writable


def test_a_mount_behind_a_closed_directory_is_not_writable() -> None:
    with tempfile.TemporaryDirectory(prefix="ck-", dir="/srv") as base:
        Path(base).chmod(0o755)
        mount = Path(base, "closed", "mount")
        mount.mkdir(parents=True)

        def found(uid: int) -> bool:
            def look() -> None:
                os.setresuid(uid, uid, uid)
                os._exit(7 if str(mount) in read_facts(None, ()).writable else 0)

            return in_child(look) == 7

        def look() -> None:
            unshare_mounts()
            subprocess.run(["mount", "-t", "tmpfs", "rw", mount], check=True, timeout=10)
            mount.parent.chmod(0o700)
            assert (found(0), found(61501)) == (True, False)
            mount.parent.chmod(0o755)
            assert (found(0), found(61501)) == (True, True)

        assert in_child(look) == 0


def test_a_process_that_hides_its_memory_shows_no_namespaces_but_all_else() -> None:
    """What a room sees of its engine before it lets it go."""

    def look() -> None:
        os.setresuid(61501, 61501, 61501)
        hide_memory()
        child = spawn(SLEEP, env=ENV, hold=True)
        facts = read_facts(child.pid, host_namespaces())
        child.kill()
        assert facts.uids == (61501,) * 4
        assert facts.namespaces == ()
        assert facts.interfaces
        assert facts.writable
        assert facts.dumpable is False

    assert in_child(look) == 0


def test_a_hostile_name_changes_nothing() -> None:
    def rename() -> None:
        Path("/proc/self/comm").write_text("x\nUid:\t0\t0")

    child = spawn(
        ["/usr/bin/setpriv", "--reuid=61501", "--", *SLEEP], env=ENV, hold=True, prepare=rename
    )
    try:
        assert read_facts(child.pid, ()).uids == (0, 0, 0, 0)
    finally:
        child.kill()


def test_a_process_that_has_ended_is_an_error() -> None:
    child = subprocess.Popen(["/bin/true"])
    child.wait(10)
    with pytest.raises(OSError, match=r"No such|process"):
        read_facts(child.pid, ())


def in_child(do: Callable[[], None]) -> int:
    """Exit code of a fork that does something which cannot be undone."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            do()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_network_namespace_of_ones_own_is_found_by_number() -> None:
    assert dict(host_namespaces())["net"] == int(os.readlink("/proc/self/ns/net")[5:-1])
    assert socket.if_nameindex()
