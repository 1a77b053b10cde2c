"""Who is running a job right now, known to the kernel rather than to a file's content.

Two files per job, because whoever can open a file for reading can also hold a read lock on it, and
no reader of the record may be able to keep a backup from running:

- `JOB.lock`, for the runner's user alone: an exclusive lock, held for the life of a run.
- `JOB.run`, readable by the group: says which run it is. The runner holds a shared lock on it, which
  nobody can refuse, and readers ask the kernel about that lock without taking one themselves.

The locks belong to the open file (F_OFD_SETLK, fcntl(2)); the kernel frees them however the runner
ends. The content stays behind then, so it counts only while the lock is held.
"""

import errno
import fcntl
import json
import os
import stat
import struct
import time
from typing import Final, NamedTuple

from capkeep.errors import RefusedError

_WHOLE_FILE: Final = "hhqqi"  # struct flock: type, whence, start, length, pid
_CONTENT_LIMIT: Final = 4096
_COPIES: Final = ".copies"
_TARGET: Final = "@"


class Holder(NamedTuple):
    """Who runs a job, since when. All but `job` are empty for the moment in which a run begins."""

    job: str  # or what `work_on` or `copies_of` names
    run: str = ""
    uid: int = -1
    user: str = ""
    since: float = 0.0
    pid: int = 0


class JobLock:
    """The right to run a job; held from `acquire` until `release` or the end of the process."""

    def __init__(self, directory: str, job: str) -> None:
        self._directory = directory
        self._base = lock_base(directory, job)
        self._job = job
        self._fds: list[int] = []

    def acquire(self, who: Holder) -> None:
        """Take the lock and say who has it. Raises RefusedError with who runs it, OSError."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fds.append(os.open(self._base + ".lock", flags, 0o600))
            if not _set_lock(self._fds[0], fcntl.F_WRLCK):
                raise _refusal(holder(self._directory, self._job) or Holder(self._job))
            told = share(self._base + ".run")
            self._fds.append(told)
            os.ftruncate(told, 0)
            os.pwrite(told, json.dumps(who._asdict()).encode(), 0)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others run the job; safe to call again."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> "JobLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def work_on(repository: str) -> str:
    """What is locked in place of a job by work on a repository; no job has such a name."""
    return f"-{repository}"


def copies_of(job: str) -> str:
    """What is locked in place of a job while it is copied: a backup is not kept waiting for days.

    No job has such a name.
    """
    return f"{job}{_COPIES}"


def pulls_from(target: str) -> str:
    """What is locked in place of a job while a target is pulled from. No job has such a name."""
    return f"{_TARGET}{target}"


def place_in_line(number: int) -> str:
    """What is locked by one of so many pulls that may be under way. No target has such a name."""
    return f"{_TARGET}pull.{number}"


def after_pulls() -> str:
    """What is locked in place of a job by what comes after the last pull. No target has such a name."""
    return f"{_TARGET}pull.over"


def last_pull() -> str:
    """What is locked by who decides whether a pull was the last. No target has such a name."""
    return f"{_TARGET}pull.last"


def holders_without_job(directory: str) -> list[Holder]:
    """Who works on repositories now, apart from jobs."""
    names = [n.removesuffix(".run") for n in os.listdir(directory) if n.endswith(".run")]
    found = [holder(directory, name) for name in names if name.startswith("-")]
    return [h for h in found if h is not None]


def holder(directory: str, job: str) -> Holder | None:
    """Who runs the job now, or None. Takes no lock; needs to read the directory only."""
    path = lock_base(directory, job) + ".run"
    if not is_shared(path):
        return None
    try:
        fd = open_regular(path)
    except OSError:
        return None  # it has just been replaced by something else
    try:
        return _parse(job, os.read(fd, _CONTENT_LIMIT))
    finally:
        os.close(fd)


def lock_base(directory: str, job: str) -> str:
    """The path of a job's lock files without their endings."""
    return f"{directory}/{job}"


def _parse(job: str, content: bytes) -> Holder:
    try:
        plain = json.loads(content)
        return Holder(
            job=job, run=str(plain["run"]), uid=int(plain["uid"]), user=str(plain["user"]),
            since=float(plain["since"]), pid=int(plain["pid"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return Holder(job)  # it is being written


def share(path: str) -> int:
    """Show everybody who may read the file that we are there, until the descriptor is closed.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    os.fchmod(fd, 0o640)
    _set_lock(fd, fcntl.F_RDLCK)
    return fd


def open_regular(path: str) -> int:
    """A file for reading in a directory that the runner's user may fill with anything.

    Root reads there: no link is followed, and no FIFO or device waited for. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def is_shared(path: str) -> bool:
    """Whether anybody is there. Takes no lock: F_OFD_GETLK only asks."""
    try:
        fd = open_regular(path)
    except OSError:
        return False
    try:
        asked = struct.pack(_WHOLE_FILE, fcntl.F_WRLCK, 0, 0, 0, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    finally:
        os.close(fd)
    kind: int = struct.unpack(_WHOLE_FILE, answer)[0]
    return kind != fcntl.F_UNLCK


def _set_lock(fd: int, kind: int) -> bool:
    """Take a lock on the whole file if nobody else has one that conflicts. Raises OSError."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_WHOLE_FILE, kind, 0, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _refusal(found: Holder) -> RefusedError:
    repository = found.job.removeprefix("-")
    what = f"job {found.job}" if found.job == repository else f"work on repository {repository}"
    if found.job.endswith(_COPIES):
        what = f"copying of job {found.job.removesuffix(_COPIES)}"
    if found.job == after_pulls():
        what = "what comes after the last pull"
    elif found.job.startswith(_TARGET):
        what = f"a pull from {found.job.removeprefix(_TARGET)}"
    if not found.run:
        return RefusedError(f"{what} is being run already", hint="wait for that run to end")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
    who = found.user or f"uid {found.uid}"
    return RefusedError(
        f"{what} is being run already, by {who} since {since} (run {found.run})",
        hint="`capkeep status` shows it; each runs once at a time",
    )
