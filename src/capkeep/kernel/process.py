"""The only module that starts programs.

fork and exec rather than `subprocess`: a room's engine is confined in the child, looked at by its
parent, and only then allowed to become the engine; and importing `subprocess` costs a room 8 ms.
Call it from single-threaded programs only (fork(2)).
"""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
_READY: Final = b"R"
_libc: ctypes.CDLL | None = None


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises OSError."""
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "prctl")


def hide_memory() -> None:
    """Keep other processes of the same user away from this one's memory and descriptors.

    PR_SET_DUMPABLE, prctl(2): the kernel then refuses ptrace and /proc/PID/{mem,fd,environ}.
    """
    prctl(PR_SET_DUMPABLE, 0)


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
        self.close_pipes(_read_status(self._status))

    def close_pipes(self, report: bytes) -> None:
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
        if self._returncode is None and not select.select([self._pidfd], [], [], timeout)[0]:
            raise TimeoutError(f"process {self.pid} still runs after {timeout:g} s")
        code = self.poll()
        assert code is not None, "a readable pidfd means the process has ended"
        return code

    def kill(self, grace: float = 0) -> int:
        """End the program: SIGTERM and `grace` seconds first if asked, then SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL) if grace else (signal.SIGKILL,):
            if self.poll() is None:
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
    kernel kills the child when we die. Raises OSError if the program cannot be run.
    """
    # Above every descriptor that the child will place, so that none of them overwrites these.
    floor = max(keep or {}, default=2) + 1
    status_read, status_write = _high_pipe(floor)
    go_read, go_write = _high_pipe(floor)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            if not survive_parent:
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
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
            os.write(status_write, f"{number} {error}".encode()[:400])
        finally:
            os._exit(127)
    os.close(status_write)
    os.close(go_read)
    child = Child(pid, go_write, status_read)
    if not hold:
        child.release()
    else:
        report = os.read(status_read, 512)
        if report != _READY:
            child.close_pipes(report or b"32 the child died before its program started")
    return child


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


def _high_pipe(floor: int) -> tuple[int, int]:
    """A pipe whose ends are numbered from `floor` on."""
    low = os.pipe()
    try:
        return _lift(low[0], floor), _lift(low[1], floor)
    finally:
        for fd in low:
            os.close(fd)


def _lift(fd: int, floor: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)


def _read_status(fd: int) -> bytes:
    """What the child reported until its exec closed the pipe; empty when all went well."""
    report = b""
    while part := os.read(fd, 512):
        report += part
    return report.removeprefix(_READY)


def python(package: str, module: str) -> tuple[str, ...]:
    """Arguments for an interpreter that runs `module.main()` and reads no site configuration."""
    code = f"import sys; sys.path.append({package!r}); from {module} import main; sys.exit(main())"
    return ("-I", "-S", "-c", code)


def interpreter() -> str:
    """The real path of the Python that runs this program."""
    return os.path.realpath(sys.executable)
