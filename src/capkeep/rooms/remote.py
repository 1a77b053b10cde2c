"""A repository that a program of the engine's serves on another machine, reached over ssh.

The vault alone has the key, and the network. Each pair of pipes has a connection of its own; between
the two stands a guard, a program of ours for the engine's interpreter (`Engine.server`), since what
runs there asks nobody here what it may do. The first connection is made before anything else, so that
an engine is not started for a server that does not answer.
"""

import re
import select
import shlex
import socket
from typing import Final

from capkeep.engines import ENGINES
from capkeep.errors import Failure
from capkeep.plan.model import Brief
from capkeep.rooms.rest.places import ssh_login
from capkeep.rooms.rest.ssh import Login, Ssh, remove_dead_agents
from capkeep.rooms.service import StoreError, folder
from capkeep.values import Location

HELLO_SECONDS: Final = 60  # a login may look names up, and run what its user's shell starts with
# What shells say of a program that they cannot start, {0}.
_NOT_STARTED: Final = (
    "{0}: (command )?not found|not found: {0}|{0}: (no such file|permission denied)"
)


class SshLine:
    """A connection over which the other side has been greeted."""

    def __init__(self, login: Login, own: str, command: tuple[str, ...], hello: bytes) -> None:
        """Waits for nothing but ssh's own start. Raises StoreError."""
        self._login, self._program = login, command[0]
        self._ssh = Ssh(login, own, shlex.join(command), threads=False)
        self._sock: socket.socket | None = None
        try:
            self._sock = self._ssh.start()
            self._sock.sendall(hello)
        except OSError as error:
            lost = self.lost(f"the connection was closed at once: {error}")
            self._ssh.close()
            raise lost from error
        except BaseException:
            self._ssh.close()
            raise

    @property
    def fd(self) -> int:
        assert self._sock is not None, "open until it is given up"
        return self._sock.fileno()

    @property
    def words_fd(self) -> int:
        return self._ssh.words_fd

    def hear(self) -> None:
        self._ssh.hear()

    def await_answer(self) -> None:
        """Until somebody has said anything, who has then let us in. Raises StoreError."""
        assert self._sock is not None, "open until it is given up"
        if not select.select([self._sock], [], [], HELLO_SECONDS)[0]:
            raise self.lost(
                f"no answer within {HELLO_SECONDS} seconds: look how long a login takes there (a name"
                " that its sshd looks up, what PAM or the shell starts with)"
            )
        try:
            answered = bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            answered = False
        if not answered:
            raise self.lost("the connection was closed before anything was said")
        self.opened()

    def give_up(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def opened(self) -> None:
        """Nobody needs the key any more."""
        self._ssh.forget_key()

    def lost(self, text: str) -> StoreError:
        words = self._ssh.words()
        reasons = _NOT_STARTED.format(re.escape(self._program))
        if re.search(reasons, words, re.IGNORECASE):
            return StoreError(
                Failure.REFUSED,
                f"{self._login.host} cannot start {self._program} ({words}): install it there, or"
                " name it with options.remote-path",
            )
        return self._ssh.explain(text)

    def end(self, seconds: float) -> None:
        self.give_up()
        self._ssh.end(seconds)


class SshPlace:
    """Nothing that is there is looked at but by the engine's own program."""

    def __init__(self, brief: Brief, location: Location) -> None:
        """Starts the first connection, waits for nothing. Raises StoreError."""
        assert brief.repository is not None, "a vault has a repository"
        traits = ENGINES[brief.repository.engine].traits
        assert traits.remote is not None, "an engine with ssh locations says how it is reached"
        named = dict(brief.repository.options).get("remote-path", "")
        self._command = (named or traits.program, *traits.remote.words)
        self._hello = traits.remote.hello
        self._login, self._own = ssh_login(brief, location), folder(brief)
        remove_dead_agents(self._own)
        self._next: SshLine | None = self._connected()

    def _connected(self) -> SshLine:
        return SshLine(self._login, self._own, self._command, self._hello)

    def patience(self) -> float:
        return HELLO_SECONDS + 2.0

    def preflight(self) -> None:
        """Whether somebody answers. What that says is for the guard."""
        assert self._next is not None, "made at the start"
        self._next.await_answer()

    def free_space(self) -> int | None:
        """The server alone knows."""
        return None

    def line(self) -> SshLine:
        line, self._next = self._next or self._connected(), None
        return line

    def close(self) -> None:
        if self._next is not None:
            self._next.end(0)
