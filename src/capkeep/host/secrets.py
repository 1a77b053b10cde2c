"""Fetch a room's secrets just before it starts; they go on in memory only.

Runs in the root parent, which starts commands as the room's user (in user mode: as the user).
"""

import errno
import os
import shutil
import stat
from typing import Final

from capkeep.errors import CapkeepError
from capkeep.kernel.process import become_user, spawn
from capkeep.plan.model import Grant, Mode, Secret, SecretSource
from capkeep.values import PLAIN_STORES, SEALED_STORES, given_stores, secret_text

MAX_BYTES: Final = 64 << 10
COMMAND_SECONDS: Final = 30


class SecretError(CapkeepError):
    """A secret cannot be had; names the secret and where it should come from, never its value."""


def fetch(secret: Secret, grant: Grant, mode: Mode) -> str:
    """The secret's text, without the newline that editors add. Raises SecretError."""
    source = secret.source
    try:
        raw = _read(source, grant, mode)
    except (OSError, TimeoutError) as error:
        raise SecretError(f"secret {secret.name} from {describe(source)}: {error}") from error
    text = secret_text(raw)
    if not text:
        raise SecretError(f"secret {secret.name} from {describe(source)} is empty")
    return text


def describe(source: SecretSource) -> str:
    """Where a secret comes from, for people."""
    if source.file:
        return source.file
    return (
        f"credential {source.credential}" if source.credential else f"command {source.command[0]}"
    )


def _read(source: SecretSource, grant: Grant, mode: Mode) -> bytes:
    if source.file:
        return _read_file(source.file)
    if source.command:
        return _output(source.command, grant, mode)
    for store in PLAIN_STORES:
        path = f"{store}/{source.credential}"
        if os.path.exists(path):
            return _read_file(path)
    tool = shutil.which("systemd-creds", path="/usr/bin:/bin")
    for store in SEALED_STORES:
        path = f"{store}/{source.credential}"
        if os.path.exists(path) and tool:
            return _output((tool, "decrypt", path, "-"), None, mode)
    for store in given_stores():
        path = f"{store}/{source.credential}"
        if os.path.exists(path):
            return _read_file(path)
    stores = PLAIN_STORES + SEALED_STORES + given_stores()
    raise FileNotFoundError(2, "no such credential in " + ", ".join(stores))


def _read_file(path: str) -> bytes:
    # A FIFO in its place must not make the doors wait for whoever writes into it.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.read(fd, MAX_BYTES)
    finally:
        os.close(fd)


def _output(argv: tuple[str, ...], grant: Grant | None, mode: Mode) -> bytes:
    """What a command prints, run as the room's user and without any capability."""

    def drop_root() -> None:
        if grant is not None and mode is Mode.SYSTEM:
            become_user(grant.uid, grant.gid)

    receiving, sending = os.pipe()
    try:
        child = spawn(argv, env={"PATH": "/usr/bin:/bin"}, stdout=sending, prepare=drop_root)
    finally:
        os.close(sending)
    # What it leaves behind (an agent, say) may hold the pipe open for ever: take what is there.
    os.set_blocking(receiving, False)
    with open(receiving, "rb", buffering=0) as output:
        try:
            code = child.wait(COMMAND_SECONDS)  # what fits the pipe (64 KiB) needs no reader
        finally:
            child.kill()
        if code != 0:
            raise OSError(errno.EIO, f"{argv[0]} exited with {code}")
        return output.read(MAX_BYTES) or b""
