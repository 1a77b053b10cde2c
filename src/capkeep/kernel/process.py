"""The only module that starts programs.

fork and exec rather than `subprocess`: a room's engine is confined in the child, looked at by its
parent, and only then allowed to become the engine; and importing `subprocess` costs a room 8 ms.
Call it from single-threaded programs only (fork(2)).
"""

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn

from capkeep.kernel import libc

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
START_SECONDS: Final = 60  # for a child to prepare itself and become its program
_UMASK: Final = 0o022  # whatever the shell had that started us
_READY: Final = b"R"


def hide_memory() -> None:
    """Keep other processes of the same user away from this one's memory and descriptors.

    PR_SET_DUMPABLE, prctl(2): the kernel then refuses ptrace and /proc/PID/{mem,fd,environ}.
    """
    libc.prctl("PR_SET_DUMPABLE", PR_SET_DUMPABLE, 0)


class Child:
    """A started program. Its owner must `wait` for it or `kill` it."""

    def __init__(self, pid: int, go: int, status: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._go = go
        self._status = status
        self._returncode: int | None = None

    def fileno(self) -> int:
        """Readable for select(2) once the program has ended (pidfd_open(2))."""
        return self._pidfd

    def release(self) -> None:
        """Let a held child become its program. Raises OSError if the program cannot be run."""
        # A child that is not held has closed its end already; a dead one is seen below.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b"g")
        self._close_pipes(_read_status(self._status))

    def await_ready(self) -> None:
        """Wait until a held child is prepared. Raises OSError if it cannot be."""
        report = _read_status(self._status, once=True)
        if report != _READY:
            self._close_pipes(report or b"32 the child died before its program started")

    def abandon(self) -> None:
        """End a child that has not become its program."""
        self._close_pipes(b"")
        self.kill()

    def _close_pipes(self, report: bytes) -> None:
        """The child has become its program, or `report` says why not; that raises OSError."""
        for fd in (self._go, self._status):
            if fd >= 0:
                os.close(fd)
        self._go = self._status = -1
        if report:
            self.wait(10)
            number, _, what = report.decode(errors="replace").partition(" ")
            raise OSError(int(number), f"{os.strerror(int(number))}: {what}")

    def poll(self) -> int | None:
        """The exit code (negative: the signal that ended it), or None while it runs."""
        if self._returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._returncode = os.waitstatus_to_exitcode(status)
                os.close(self._pidfd)
        return self._returncode

    def wait(self, timeout: float) -> int:
        """Wait at most `timeout` seconds for the exit code. Raises TimeoutError."""
        if self._returncode is None and not _readable(self._pidfd, timeout):
            raise TimeoutError(f"process {self.pid} still runs after {timeout:g} s")
        code = self.poll()
        assert code is not None, "a readable pidfd means the process has ended"
        return code

    def send_signal(self, number: int) -> None:
        """Send it to the program if it still runs."""
        if self._returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self, grace: float = 0) -> int:
        """End the program: SIGTERM and `grace` seconds first if asked, then SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL) if grace else (signal.SIGKILL,):
            if self.poll() is None:
                if number == signal.SIGKILL:
                    # Its group first: a bubblewrap killed while it builds the room would leave a
                    # child that waits for it for ever. The number is ours until we have waited.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self.pid, number)
                signal.pidfd_send_signal(self._pidfd, number)
                try:
                    return self.wait(grace if number == signal.SIGTERM else 30)
                except TimeoutError:
                    continue
        code = self.poll()
        if code is None:
            raise TimeoutError(f"process {self.pid} survives SIGKILL")
        return code


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: int = -1,
    stdout: int = -1,
    stderr: int = 2,
    keep: Mapping[int, int] | None = None,
    cwd: str = "/",
    prepare: Callable[[], None] | None = None,
    hold: bool = False,
    survive_parent: bool = False,
) -> Child:
    """Start a program with an explicit environment and nothing inherited by accident.

    `stdin`, `stdout`: descriptors, -1 for /dev/null. `keep` maps further descriptor numbers of the
    child to ours. `prepare` runs in the child, last before exec. With `hold` the child waits there
    until `release`, so that its kernel facts can be read first. Unless `survive_parent`, the
    kernel kills the child when we die; not one that gains a capability by its file (a launcher),
    whose end is that of its connections. Raises OSError if the program cannot be run.
    """
    parent = os.getpid()
    status_read, status_write, go_read, go_write = _pipes(floor=max(keep or {}, default=2) + 1)
    try:
        pid = os.fork()
    except OSError:
        _close(status_read, status_write, go_read, go_write)
        raise
    if pid == 0:
        try:
            if not survive_parent:
                libc.prctl("PR_SET_PDEATHSIG", PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(127)
            os.setsid()
            _become(
                argv,
                env,
                (stdin, stdout, stderr),
                keep or {},
                cwd,
                prepare,
                status_write,
                go_read if hold else -1,
            )
        except BaseException as error:
            number = error.errno if isinstance(error, OSError) and error.errno else 22
            os.write(status_write, os.fsencode(f"{number} {error}")[:400])
        finally:
            os._exit(127)
    _close(status_write, go_read)
    child = _adopt(pid, go_write, status_read)
    try:
        child.await_ready() if hold else child.release()
    except BaseException:
        child.abandon()
        raise
    return child


def become_user(uid: int, gid: int) -> None:
    """In a child: be somebody for good, without any further group. Raises OSError."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def branch(work: Callable[[], None], keep: set[int] | None = None) -> int:
    """Do `work` in a copy of this program, which ends with it; its process id, to be waited for.

    With `keep` it has these descriptors alone, and a session of its own.
    """
    pid = os.fork()
    if pid == 0:
        try:
            if keep is not None:
                os.setsid()
                _close_others(keep)
            work()
        finally:
            os._exit(0)
    return pid


def replace(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Become another program (execve(2)). Raises OSError."""
    os.execve(argv[0], list(argv), dict(env))


def _become(
    argv: Sequence[str],
    env: Mapping[str, str],
    standard: tuple[int, int, int],
    keep: Mapping[int, int],
    cwd: str,
    prepare: Callable[[], None] | None,
    status: int,
    go: int,
) -> NoReturn:
    """In the child: place descriptors, prepare, report, wait for the word, exec."""
    null = os.open("/dev/null", os.O_RDWR)
    wanted = {n: (null if fd < 0 else fd) for n, fd in enumerate(standard)} | dict(keep)
    # Move every source out of the way of the targets first, so that none overwrites another.
    floor = max(wanted, default=2) + 1
    lifted = {n: _lift(fd, floor) for n, fd in wanted.items()}
    for number, fd in lifted.items():
        os.dup2(fd, number, inheritable=True)
    _close_others({*wanted, status, go})
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(_UMASK)
    os.chdir(cwd)
    if prepare is not None:
        prepare()
    if go >= 0:
        os.write(status, _READY)
        if os.read(go, 1) != b"g":
            os._exit(127)
    replace(argv, env)


def _close_others(keep: set[int]) -> None:
    """Close every descriptor but these, also those that we inherited by accident ourselves."""
    low = 0
    for fd in sorted(fd for fd in keep if fd >= 0):
        if low < fd:  # CPython 3.11 takes closerange(0, 0) for everything
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _pipes(floor: int) -> tuple[int, int, int, int]:
    """Two pipes above every descriptor that a child will place, so that none overwrites them."""
    made: list[int] = []
    try:
        for _ in range(2):
            low = os.pipe()
            try:
                made += [_lift(low[0], floor)]
                made += [_lift(low[1], floor)]
            finally:
                _close(*low)
    except OSError:
        _close(*made)
        raise
    status_read, status_write, go_read, go_write = made
    return status_read, status_write, go_read, go_write


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def _adopt(pid: int, go: int, status: int) -> Child:
    """The forked process as a `Child`; it is ended if we have no descriptor left to watch it."""
    try:
        return Child(pid, go, status)
    except OSError:
        _close(go, status)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _readable(fd: int, seconds: float) -> bool:
    """Whether there is something to read within so many seconds; of any number (poll(2))."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _lift(fd: int, floor: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)


def _read_status(fd: int, *, once: bool = False) -> bytes:
    """What the child reported until its exec closed the pipe; empty when all went well.

    Raises TimeoutError: what prepares a child may hang, on a network filesystem for one.
    """
    report = b""
    deadline = time.monotonic() + START_SECONDS
    while _readable(fd, deadline - time.monotonic()):
        part = os.read(fd, 512)
        report += part
        if once or not part:
            return report if once else report.removeprefix(_READY)
    raise TimeoutError(110, f"the child was not prepared within {START_SECONDS} s")


def python(package: str, module: str) -> tuple[str, ...]:
    """Arguments for an interpreter that runs `module.main()` and reads no site configuration."""
    # Nothing that is imported is garbage: looking for some meanwhile costs a tenth of the start.
    code = (
        f"import gc, sys; gc.disable(); sys.path.append({package!r});"
        f" from {module} import main; gc.enable(); from capkeep.kernel.leave import leave;"
        " leave(main())"
    )
    return ("-I", "-S", "-c", code)


def interpreter() -> str:
    """The real path of the Python that runs this program."""
    return os.path.realpath(sys.executable)
