"""Everything rclone reaches, served by an rclone of our own on a private unix socket.

`rclone serve restic` (rclone.org/commands/rclone_serve_restic) keeps objects where restic itself
would. It gets no configuration file: the remote and its credentials are in its environment alone.
From 1.65 on it serves on a unix socket; from 1.70 on it answers 500 where it cannot know whether an
object exists, and 404 only where there is none, which `size` relies on.
"""

import os
import re
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from capkeep.errors import Failure
from capkeep.kernel.process import Child, spawn
from capkeep.rooms.rest.store import StoreError
from capkeep.rooms.rest.upstream import Endpoint, RestStore

START_SECONDS: Final = 12
STOP_SECONDS: Final = 3
PREFIX: Final = "rclone-"
# One attempt each: whether to try again is decided above, where somebody is told of it. Why a
# remote refused a question is told at level DEBUG only.
FLAGS: Final = (
    "--config=/dev/null", "--retries=1", "--low-level-retries=1", "--contimeout=8s",
    "--timeout=80s", "--expect-continue-timeout=5s", "--stats=0", "--log-level=DEBUG",
)  # fmt: skip

_FAILED: Final = re.compile(r" ERROR *: |CRITICAL|Failed to|request error: ")
_IMPORTANT: Final = re.compile(r" (ERROR|CRITICAL|NOTICE) *: ")
_ABSENT: Final = re.compile(r"NoSuchBucket|directory not found")
_DENIED: Final = re.compile(
    r"StatusCode: 40[13]|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|Unauthorized"
    r"|Forbidden|unable to authenticate|permission denied|key mismatch|key is unknown"
    r"|knownhosts|invalid_grant|no supported methods remain",
    re.IGNORECASE,
)
_FULL: Final = re.compile(
    r"no space|quota|StatusCode: 507|insufficient ?storage|QuotaExceeded|disk full", re.IGNORECASE
)


class Remote(NamedTuple):
    """What rclone is to serve."""

    location: str  # "remote:path"
    told_as: str  # as the user wrote it
    environment: tuple[tuple[str, str], ...]  # where the remote is, and its credentials


class Rclone:
    """A running rclone. Close it."""

    def __init__(self, program: str, remote: Remote, folder: str) -> None:
        os.makedirs(folder, 0o700, exist_ok=True)
        self._remote = remote
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _remove_dead_sockets(folder, self._folder)
        self._socket = f"{PREFIX}{os.urandom(8).hex()}.sock"
        # Through the descriptor: an address has at most 107 bytes (unix(7)), a state path may more.
        self.socket_path = f"/proc/self/fd/{self._folder}/{self._socket}"
        self._said: deque[str] = deque(maxlen=20)
        self._child = self._start(program, folder)

    def _start(self, program: str, folder: str) -> Child:
        read_end, write_end = os.pipe()
        environment = {
            "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": folder,
            "RCLONE_CACHE_DIR": folder, **dict(self._remote.environment),
        }  # fmt: skip
        argv = [
            program, "serve", "restic", *FLAGS, f"--addr=unix://{self._socket}",
            self._remote.location,
        ]  # fmt: skip
        try:
            child = spawn(argv, env=environment, stderr=write_end, cwd=folder, prepare=_umask)
        except OSError as error:
            os.close(read_end)
            raise StoreError(Failure.UNREACHABLE, f"rclone cannot be started: {error}") from error
        finally:
            os.close(write_end)
        threading.Thread(target=self._listen, args=(read_end,), daemon=True).start()
        return child

    def _listen(self, fd: int) -> None:
        """Keep rclone's last words about failures; the log gets the important ones."""
        with open(fd, encoding="utf-8", errors="replace") as words:
            for line in words:
                if _FAILED.search(line) and "object not found" not in line:
                    self._said.append(line.rstrip("\n"))
                if _IMPORTANT.search(line):
                    with suppress(OSError):
                        os.write(2, f"rclone: {line}".encode())

    def ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._child.poll() is not None:
                raise self.explain(OSError("rclone ended"))
            if time.monotonic() > deadline:
                raise self.explain(TimeoutError("rclone does not start"))
            select.select([self._child.fileno()], [], [], 0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.socket_path) == 0

    def explain(self, error: Exception) -> StoreError:
        """rclone's own words tell more than its dead socket."""
        return self._from_words(str(error) or "no answer")

    def refused(self, status: int, text: str) -> StoreError:
        """rclone answers 500 for every failure; the kind is in its words."""
        return self._from_words(f"rclone answered {status} {text}")

    def _from_words(self, otherwise: str) -> StoreError:
        time.sleep(0.05)  # the words come through a pipe, the answer through a socket
        words = next(reversed(self._said), "")
        text = f"{self._remote.told_as}: {_shorten(words) or otherwise}"
        if _FULL.search(words):
            return StoreError(Failure.NO_SPACE, text)
        if _ABSENT.search(words):
            return StoreError(Failure.NO_REPOSITORY, text)
        if _DENIED.search(words):
            return StoreError(Failure.DENIED, text)
        return StoreError(Failure.UNREACHABLE, text)

    def close(self) -> None:
        self._child.kill(STOP_SECONDS)
        with suppress(OSError):
            os.unlink(self._socket, dir_fd=self._folder)
        os.close(self._folder)


def rclone_store(program: str, remote: Remote, folder: str) -> RestStore:
    """A repository behind an rclone of its own, which ends with it. Raises StoreError."""
    rclone = Rclone(program, remote, folder)
    return RestStore(Endpoint("rclone", 0, "/", socket_path=rclone.socket_path), rclone)


def _umask() -> None:
    os.umask(0o077)


def _shorten(words: str) -> str:
    """Without the date, and without what only the remote's support could read."""
    words = re.sub(r"^[0-9/]+ [0-9:.]+ [A-Z]+ *: ", "", words)
    return re.sub(r", (RequestID|HostID): [^,]*", "", words)[:400]


def _remove_dead_sockets(folder: str, fd: int) -> None:
    """Sockets of vaults that were killed: nobody listens there."""
    with suppress(OSError):
        for entry in os.listdir(folder):
            if not entry.startswith(PREFIX):
                continue
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(f"/proc/self/fd/{fd}/{entry}") != 0:
                    os.unlink(entry, dir_fd=fd)


def s3_environment(
    url: str, region: str, ca_file: str, secrets: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """The remote `repo:` for an S3 endpoint, from the variables that restic itself reads."""
    given = {
        "TYPE": "s3",
        "PROVIDER": "AWS" if url.endswith(".amazonaws.com") else "Other",
        "ENDPOINT": url,
        "REGION": region or secrets.get("AWS_DEFAULT_REGION", ""),
        "ACCESS_KEY_ID": secrets.get("AWS_ACCESS_KEY_ID", ""),
        "SECRET_ACCESS_KEY": secrets.get("AWS_SECRET_ACCESS_KEY", ""),
        "SESSION_TOKEN": secrets.get("AWS_SESSION_TOKEN", ""),
        "FORCE_PATH_STYLE": "true",
        # The bucket must be there: a key that may make buckets may do too much.
        "NO_CHECK_BUCKET": "true",
    }
    found = tuple((f"RCLONE_CONFIG_REPO_{k}", v) for k, v in given.items() if v)
    return (*found, ("RCLONE_CA_CERT", ca_file)) if ca_file else found
