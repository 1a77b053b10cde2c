"""An ssh that asks nothing, trusts one file of host keys, and knows one private key.

It leads to the sftp subsystem, or to a program there.

The key comes out of memory and stays there: `ssh-add -` reads it, ssh-agent keeps it until ssh has
logged in. ssh_config(5), ssh-agent(1), ssh-add(1).
"""

import os
import re
import select
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Final, NamedTuple

from capkeep.errors import Failure
from capkeep.kernel.process import Child, spawn
from capkeep.rooms.rest.store import StoreError

SSH: Final = "/usr/bin/ssh"
SSH_ADD: Final = "/usr/bin/ssh-add"
SSH_AGENT: Final = "/usr/bin/ssh-agent"
PREFIX: Final = "agent-"
PROGRESS: Final = '"type": "progress_'  # lines of borg's that are not worth a log
AGENT_SECONDS: Final = 5
LOGGED: Final = 1 << 16  # bytes of what one ssh says: a server may say as much as it likes
OPTIONS: Final = (
    "BatchMode=yes", "StrictHostKeyChecking=yes", "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no", "CheckHostIP=no", "PreferredAuthentications=publickey",
    "IdentityFile=none", "ConnectTimeout=10", "ServerAliveInterval=20", "ServerAliveCountMax=3",
    "ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no",
    "ControlMaster=no", "ControlPath=none", "Compression=no", "LogLevel=ERROR",
)  # fmt: skip

_DENIED: Final = re.compile(
    r"permission denied|host key verification failed|host key is known"
    r"|identification has changed|too many authentication|libcrypto|invalid format|passphrase",
    re.IGNORECASE,
)

# What ssh says at the end is of little help where it is the middle that matters.
_CHANGED: Final = (
    "the server shows another host key than options.known-hosts has; if its keys are new, compare them"
    " with its owner's word before you write them there"
)
_UNKNOWN: Final = "options.known-hosts has no key of this server's"
_REFUSED: Final = (
    "the server does not take our key: its public half belongs into authorized_keys of the user that"
    " the location names"
)
_KNOWN: Final = (
    (re.compile("identification has changed", re.IGNORECASE), Failure.DENIED, _CHANGED),
    (re.compile("host key is known", re.IGNORECASE), Failure.DENIED, _UNKNOWN),
    (re.compile(r"permission denied \(", re.IGNORECASE), Failure.DENIED, _REFUSED),
)


class Login(NamedTuple):
    """Where to log in, and how."""

    host: str
    port: int  # 0: 22
    user: str  # "": the vault's own name
    known_hosts: str
    identity: str  # the private key itself
    options: tuple[str, ...] = ()  # of ssh_config(5), before our own: the first of a kind counts


class Ssh:
    """A running ssh with its end of what is started there. Close it."""

    def __init__(
        self, login: Login, folder: str, command: str = "", *, threads: bool = True
    ) -> None:
        """`command` for the server's shell, instead of the sftp subsystem.

        Without `threads`, for a program that starts others yet, its words wait to be asked for.
        """
        os.makedirs(folder, 0o700, exist_ok=True)
        self._folder = folder
        self._said: deque[str] = deque(maxlen=20)
        self._words_read, self._words = os.pipe()
        self._hearing = not threads
        self._read_words = not threads
        self._command = command
        self._children: list[Child] = []
        self._agent = ""
        self._login = login
        self._logged = 0
        self.sock: socket.socket | None = None

    def start(self) -> socket.socket:
        """Start the agent, then ssh; what is said on the socket is SFTP. Raises StoreError."""
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": self._folder}
        try:
            environment["SSH_AUTH_SOCK"] = self._start_agent(environment)
            near, far = socket.socketpair()
            with far:
                end = far.fileno()
                self._children.append(
                    spawn(
                        self._argv(), env=environment, stdin=end, stdout=end,
                        stderr=self._words, cwd=self._folder,
                    )
                )  # fmt: skip
        except OSError as error:
            raise StoreError(Failure.UNREACHABLE, f"ssh cannot be started: {error}") from error
        finally:
            self._hear()  # a thread: only once all programs have been started
        self.sock = near
        return near

    def _argv(self) -> list[str]:
        login = self._login
        hosts = login.known_hosts.replace("%", "%%")
        ours = (*OPTIONS, f'UserKnownHostsFile="{hosts}"', *_named(login))
        options = (*login.options, *ours)
        flags = [flag for option in options for flag in ("-o", option)]
        start = [SSH, "-F", "none", *flags, "-T", "-x", "-a"]
        if self._command:
            return [*start, "--", login.host, self._command]
        return [*start, "-s", "--", login.host, "sftp"]

    def _start_agent(self, environment: dict[str, str]) -> str:
        self._agent = f"{PREFIX}{os.urandom(8).hex()}"
        argv = [SSH_AGENT, "-D", "-a", self._agent]
        agent = spawn(argv, env=environment, stderr=self._words, cwd=self._folder)
        self._children.append(agent)
        self._await_agent(agent)
        key = os.memfd_create("identity", os.MFD_CLOEXEC)
        try:
            os.write(key, self._login.identity.rstrip("\n").encode() + b"\n")
            os.lseek(key, 0, os.SEEK_SET)
            add = spawn(
                [SSH_ADD, "-q", "-"], env={**environment, "SSH_AUTH_SOCK": self._agent},
                stdin=key, stderr=self._words, cwd=self._folder,
            )  # fmt: skip
            self._children.append(add)
            if add.wait(AGENT_SECONDS) != 0:
                self._hear()
                raise StoreError(Failure.DENIED, f"the identity is no usable key: {self.words()}")
        except TimeoutError as error:
            raise StoreError(Failure.DENIED, "the identity could not be loaded in time") from error
        finally:
            os.close(key)
        return self._agent

    def _await_agent(self, agent: Child) -> None:
        """Until the agent listens, which is a moment after its socket is there. Raises OSError."""
        deadline = time.monotonic() + AGENT_SECONDS
        while not self._listens():
            if agent.poll() is not None or time.monotonic() > deadline:
                raise OSError("ssh-agent does not start")
            select.select([], [], [], 0.005)

    def _listens(self) -> bool:
        """Whether somebody takes a connection there; by a name that is short enough for a socket's."""
        folder = os.open(self._folder, os.O_PATH | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
                knock.connect(f"/proc/self/fd/{folder}/{self._agent}")
        except OSError:
            return False
        finally:
            os.close(folder)
        return True

    def forget_key(self) -> None:
        """Once logged in, nobody needs the key any more."""
        if self._children:
            self._children[0].kill(1)
        with suppress(OSError):
            os.unlink(f"{self._folder}/{self._agent}")

    def _hear(self) -> None:
        if not self._hearing:
            self._hearing = True
            threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with open(self._words_read, encoding="utf-8", errors="replace") as said:
            for line in said:
                if words := _plain(line):
                    self._said.append(words)
                with suppress(OSError):
                    os.write(2, f"ssh: {words}\n".encode())

    @property
    def words_fd(self) -> int:
        """Readable when it has something to say."""
        return self._words_read

    def hear(self) -> None:
        """Take in what it has said by now, where no thread does."""
        os.set_blocking(self._words_read, False)
        with suppress(BlockingIOError):
            said = os.read(self._words_read, 65536).decode(errors="replace")
            lines = [words for line in said.splitlines() if (words := _plain(line))]
            self._said.extend(lines)
            told = "".join(f"ssh: {line}\n" for line in lines if PROGRESS not in line).encode()
            told = told[: max(0, LOGGED - self._logged)]
            self._logged += len(told)
            os.write(2, told)

    def words(self) -> str:
        """ssh's last words."""
        time.sleep(0.05)  # they come through a pipe, the end of the connection through a socket
        if self._read_words:
            self.hear()
        return self._said[-1] if self._said else ""

    def said(self) -> str:
        """All that is remembered of what it said."""
        return " ".join(self._said)

    def explain(self, otherwise: str) -> StoreError:
        """Why the connection is gone."""
        words = self.words()
        host, said = self._login.host, self.said()
        for pattern, failure, sentence in _KNOWN:
            if pattern.search(said):
                return StoreError(failure, f"{host}: {sentence} ({words})")
        failure = Failure.DENIED if _DENIED.search(said) else Failure.UNREACHABLE
        return StoreError(failure, f"{host}: {words or otherwise}")

    def end(self, seconds: float) -> None:
        """Give it time to end by itself, once nobody speaks to it any more; then close it."""
        with suppress(TimeoutError):
            if self._children:
                self._children[-1].wait(seconds)
        self.close()

    def close(self) -> None:
        """End all of it; safe to call again."""
        if self.sock is not None:
            self.sock.close()
        for child in self._children:
            child.kill(1)
        if self._agent:
            self.forget_key()
        if self._words >= 0:
            os.close(self._words)
            self._words = -1
            if self._read_words:
                os.close(self._words_read)


def _plain(line: str) -> str:
    """A line without what moves a cursor or begins another line: a server may say anything."""
    return "".join(c if c.isprintable() else " " for c in line).strip()


def _named(login: Login) -> tuple[str, ...]:
    """Options that are given only where the location says something."""
    port = (f"Port={login.port}",) if login.port else ()
    return (*port, f"User={login.user}") if login.user else port


def remove_dead_agents(folder: str) -> None:
    """Sockets of agents that were killed with their vault."""
    with suppress(OSError):
        for entry in os.listdir(folder):
            if not entry.startswith(PREFIX):
                continue
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    if probe.connect_ex(f"/proc/self/fd/{fd}/{entry}") != 0:
                        os.unlink(entry, dir_fd=fd)
            finally:
                os.close(fd)
