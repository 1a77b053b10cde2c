"""A Debian machine with real systemd as PID 1, with capkeep installed, for as long as a test needs it.

    with Machine("trixie") as machine:
        machine.ok("useradd", "-m", "alice")
        machine.write("/etc/systemd/system/x.service", UNIT)
        machine.ok("systemctl", "start", "x")
        assert machine.run("capkeep", "status", user="alice").code == 0
        machine.kill()          # the power fails
        machine.boot()          # and comes back
        assert "Started" in machine.journal("x")

It is a container: it has its own processes, mounts, control groups and network (loopback alone),
every capability and no system call filter, but the kernel of the host. What it writes is kept apart
from the tree it was made from and removed at the end. However this run ends, its machines end with
it; what a killed run left on disk is removed by the next one.
"""

import contextlib
import fcntl
import itertools
import os
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from tests.lab import inventory, trees
from tests.lab.host import (
    MACHINES,
    PREFIX,
    STOP_SECONDS,
    clear_leftovers,
    control_groups,
    end_group,
    remove,
    run_here,
)

BOOT_SECONDS: Final = 90
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
COUNTER: Final = itertools.count(1)

# Processes go into a control group before anything of theirs runs.
ENTER: Final = 'echo 0 >"$0/cgroup.procs" && exec "$@"'
# The watcher's standard input ends when this program does, whatever ended it; then so does the machine.
WATCH: Final = 'read -r _; echo 1 >"$0/cgroup.kill"'
# nspawn gives a machine the layout of control groups that it finds: unified, as Debian has it,
# whatever the host still has.
UNIFY: Final = (
    'umount -l /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
)
# The tree of a machine that is off, with what programs expect to find everywhere.
LOOK: Final = 'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && exec chroot "$0" "$@"'


class Result(NamedTuple):
    """What a command in the machine answered."""

    code: int
    out: str
    err: str


class Machine:
    """One machine. `suite` is a Debian release; `hostname` is what the machine calls itself.

    With `plain`, its disk is a copy of the tree instead of an overlay: slower by a few seconds, but
    an ordinary file system all the way. With `installed=False` it has capkeep's dependencies in
    /opt/capkeep, and not capkeep. `packages` are Debian's that it has besides (`trees.PULLING`).
    With `network` it has another machine's network, loopback and all, instead of one of its own.
    """

    alive: Final[list["Machine"]] = []  # for reports: what a failed test was about
    told: Final[dict[str, str]] = {}  # the journals of those that ended with an error

    def __init__(
        self,
        suite: str,
        *,
        hostname: str = "lab",
        plain: bool = False,
        installed: bool = True,
        packages: tuple[str, ...] = (),
        network: "Machine | None" = None,
    ) -> None:
        self.suite = suite
        self.hostname = hostname
        self.name = f"{suite}-{os.getpid()}-{next(COUNTER)}"
        self.boot_seconds = 0.0
        self._plain = plain
        self._installed = installed
        self._packages = packages
        self._network = network
        self._folder = MACHINES / self.name
        self._init = 0  # PID 1 of the machine as the host numbers it; 0: not running
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._ending = contextlib.ExitStack()

    @property
    def tree(self) -> Path:
        """The machine's root directory on the host. What it has mounted (/run, /tmp) is not there."""
        return self._folder / "tree"

    @property
    def init(self) -> int:
        """Its first process as the host numbers it, by which its namespaces are found; 0: it is off."""
        return self._init

    @property
    def running(self) -> bool:
        """Whether systemd is there; `boot` has waited until it has started everything."""
        return self._init in self._first_processes()

    def __enter__(self) -> "Machine":
        with contextlib.ExitStack() as stack:
            self._make(stack)
            self.boot()
            self._ending = stack.pop_all()
        self.alive.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.alive.remove(self)
        with self._ending:
            if kind is not None:
                self.told[self.name] = self.report()

    def boot(self) -> None:
        """Switch it on and wait until it is up. Raises TimeoutError with what it said."""
        assert not self.running, "it is running"
        self.kill()  # what is not up may be half way up or down
        group = self._group()
        group.mkdir(exist_ok=True)
        argv = [
            "sh", "-c", ENTER, group,
            "unshare", "--mount", "--propagation", "slave", "sh", "-c", UNIFY, "sh",
            "systemd-nspawn", "-q", "-b", f"--directory={self.tree}", f"--machine={self.name}",
            f"--hostname={self.hostname}", "--register=no", "--keep-unit", "--capability=all",
            self._network_option(), "--resolv-conf=off", "--timezone=off", "--link-journal=no",
            "--console=pipe",
        ]  # fmt: skip
        self._watcher = subprocess.Popen(
            ["sh", "-c", WATCH, group], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/",
        )  # fmt: skip
        started = time.monotonic()
        with (self._folder / "console").open("wb") as console:
            self._nspawn = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                start_new_session=True, env={"PATH": PATH, "SYSTEMD_SECCOMP": "0"},
            )  # fmt: skip
        try:
            self._wait_until_up(started + BOOT_SECONDS)
        except BaseException:
            self.kill()
            self.told[self.name] = self.report()
            raise
        self.boot_seconds = time.monotonic() - started

    def run(
        self,
        *argv: str,
        user: str = "root",
        input: str = "",  # noqa: A002  (the name that subprocess.run has for it)
        seconds: float = 60,
    ) -> Result:
        """Run a command, as a user who has just logged in. Raises TimeoutError.

        It gets that user's groups, home directory and environment, and nothing of the host's.
        """
        assert self.running, "it is not running"
        become, home, path = [], "/root", PATH
        if user != "root":
            gid, home = self._account(user)
            become = ["setpriv", f"--reuid={user}", f"--regid={gid}", "--init-groups", "--"]
            path = USER_PATH
        words = [
            "timeout", "--kill-after=2", str(seconds), *become,
            "env", "-i", f"--chdir={home}", f"HOME={home}", f"USER={user}", f"LOGNAME={user}",
            "SHELL=/bin/bash", f"PATH={path}", "LANG=C.UTF-8", *argv,
        ]  # fmt: skip
        started = time.monotonic()
        done = self._enter(words, _bytes(input), seconds + 5)
        result = Result(done.returncode, _text(done.stdout), _text(done.stderr))
        if time.monotonic() - started >= seconds:
            raise TimeoutError(f"{' '.join(argv)} took more than {seconds} s: {result}")
        return result

    def ok(
        self,
        *argv: str,
        user: str = "root",
        input: str = "",  # noqa: A002  (the name that subprocess.run has for it)
        seconds: float = 60,
    ) -> str:
        """Run a command that must succeed; what it printed. Raises AssertionError, TimeoutError."""
        done = self.run(*argv, user=user, input=input, seconds=seconds)
        assert done.code == 0, f"{' '.join(argv)}: exit {done.code}\n{done.out}{done.err}"
        return done.out

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Make a file of root's, and its directories where they are missing; running or not."""
        script = 'umask 022; mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1" && chown 0:0 "$1"'
        done = self._enter(["sh", "-c", script, "sh", path, f"{mode:o}"], _bytes(text), 30)
        assert done.returncode == 0, done.stderr

    def read(self, path: str) -> str:
        """What a file holds; running or not. Raises FileNotFoundError."""
        done = self._enter(["cat", path], b"", 30)
        if done.returncode:
            raise FileNotFoundError(_text(done.stderr).strip())
        return _text(done.stdout)

    def kill(self) -> None:
        """The power fails: every process ends at once, nothing is told or tidied.

        What was written is there afterwards, fsync or not: the kernel of the host lives on.
        """
        self._init = 0
        end_group(self._group())
        for helper in (self._nspawn, self._watcher):
            if helper is not None:
                helper.kill()
                helper.wait(STOP_SECONDS)
                if helper.stdin is not None:
                    helper.stdin.close()
        self._nspawn = self._watcher = None

    def shutdown(self) -> None:
        """Switch it off in an orderly way. Raises TimeoutError; it is off even so."""
        self.run("systemctl", "poweroff", "--no-block")
        assert self._nspawn is not None
        try:
            self._nspawn.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} did not stop:\n{self._console()}") from None
        finally:
            self.kill()

    def journal(self, unit: str = "") -> str:
        """The journal of all boots, or what a unit has to do with, as text; running or not."""
        if self.running:
            self._enter(["journalctl", "--sync"], b"", 30)
        words = ["journalctl", "--no-pager", "-q", "-o", "short-precise"]
        done = self._enter([*words, *([f"--unit={unit}"] if unit else [])], b"", 30)
        return done.stdout.decode(errors="replace")

    def boot_id(self) -> str:
        """Which boot this is: another one after every `boot`."""
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    def inventory(self) -> inventory.Inventory:
        """Every path of the machine's disk, for `inventory.differences`."""
        return inventory.take(self.tree)

    def wait(self, predicate: Callable[[], object], seconds: float = 30) -> None:
        """Wait until something is so. Raises TimeoutError."""
        limit = time.monotonic() + seconds
        while not predicate():
            if time.monotonic() > limit:
                raise TimeoutError(f"not within {seconds} s")
            time.sleep(0.1)

    def report(self) -> str:
        """What it said on its console and in its journal, for somebody who looks for a mistake."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return f"{self._console()}\n{self.journal()}"
        return self._console()

    def _console(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "console").read_text(errors="replace")
        return ""

    def _make(self, stack: contextlib.ExitStack) -> None:
        """Make the machine's disk."""
        layers = [trees.product(self.suite)] if self._installed else []
        layers.append(trees.base(self.suite, self._packages))
        with trees.locked():
            clear_leftovers()
            self.tree.mkdir(parents=True)
            lock = stack.enter_context((self._folder / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        stack.callback(remove, self._folder)
        stack.callback(self.kill)
        if self._plain:
            for layer in reversed(layers):
                run_here("cp", "-a", f"{layer}/.", self.tree)
        else:
            upper, work = self._folder / "upper", self._folder / "work"
            upper.mkdir()
            work.mkdir()
            lower = ":".join(map(str, layers))
            options = f"lowerdir={lower},upperdir={upper},workdir={work}"
            run_here("mount", "-t", "overlay", "-o", options, "overlay", self.tree)
        # A machine without an identity takes its first boot for its installation.
        (self.tree / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (self.tree / "etc/hostname").write_text(f"{self.hostname}\n")

    def _group(self) -> Path:
        return control_groups() / f"{PREFIX}{self.name}"

    def _network_option(self) -> str:
        if self._network is None:
            return "--private-network"
        return f"--network-namespace-path=/proc/{self._network.init}/ns/net"

    def _wait_until_up(self, limit: float) -> None:
        state = ""
        while state not in {"running", "degraded"}:
            assert self._nspawn is not None
            if time.monotonic() > limit or self._nspawn.poll() is not None:
                raise TimeoutError(f"{self.name} did not start ({state}):\n{self._console()}")
            time.sleep(0.05)
            self._init = self._init or self._find_init()
            if self._init:
                done = self._enter(["systemctl", "is-system-running", "--wait"], b"", BOOT_SECONDS)
                state = done.stdout.decode().strip()

    def _find_init(self) -> int:
        """Systemd itself: what is process 1 where it lives; 0 while there is none."""
        for pid in self._first_processes():
            with contextlib.suppress(OSError):  # others there come and go
                status = Path(f"/proc/{pid}/status").read_text()
                if status.partition("\nNSpid:")[2].partition("\n")[0].split()[-1:] == ["1"]:
                    return pid
        return 0

    def _first_processes(self) -> list[int]:
        """The processes where systemd keeps itself, as the host numbers them."""
        with contextlib.suppress(OSError):
            path = self._group() / "payload/init.scope/cgroup.procs"
            return [int(pid) for pid in path.read_text().split()]
        return []

    def _account(self, user: str) -> tuple[str, str]:
        """The group and the home directory of a user. Raises LookupError."""
        for line in self.read("/etc/passwd").splitlines():
            fields = line.split(":")
            if fields[0] == user:
                return fields[3], fields[5]
        raise LookupError(f"{self.name} has no user {user}")

    def _enter(
        self, argv: list[str], data: bytes, seconds: float
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a program in the machine's namespaces, or in its tree while it is off."""
        if self.running:
            group = self._group() / "payload" / "visitors"
            group.mkdir(exist_ok=True)
            way = [
                "sh",
                "-c",
                ENTER,
                str(group),
                "nsenter",
                f"--target={self._init}",
                "--all",
                "--",
            ]
        else:
            way = ["unshare", "--mount", "sh", "-c", LOOK, str(self.tree)]
        try:
            return subprocess.run(
                [*way, *argv], input=data, capture_output=True, timeout=seconds, check=False,
                cwd="/", env={"PATH": PATH, "LANG": "C.UTF-8"}, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{' '.join(argv)} took more than {seconds} s") from error


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _text(data: bytes) -> str:
    """What a program wrote, whatever bytes it is made of."""
    return data.decode(errors="surrogateescape")
