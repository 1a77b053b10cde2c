"""The administrator's own ssh: with his agent, configuration and terminal.

Which host key it believes is not his to choose: it is the one that the configuration has pinned.
Sources: ssh(1), ssh_config(5).
"""

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from capkeep.errors import UsageError
from capkeep.kernel.process import branch, replace
from capkeep.rooms.pull.link import HERE, ON_THE_WAY, known_hosts
from capkeep.rooms.rest.ssh import SSH

SSH_FAILED: Final = 255  # its own exit code; any other is the program's that it started
# What of the administrator's environment his ssh, its agent and its terminal need.
OWN: Final = (
    "DISPLAY", "HOME", "LANG", "LC_ALL", "LOGNAME", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE",
    "SSH_AUTH_SOCK", "TERM", "USER", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR",
)  # fmt: skip


class Way(NamedTuple):
    """How an administrator reaches a target."""

    login: str  # "root@web1.example.org"
    port: int  # 0: as his own configuration says
    host_keys: tuple[str, ...]
    jump: str = ""
    jump_keys: tuple[str, ...] = ()

    @property
    def is_root(self) -> bool:
        """Whether he is root there, without sudo."""
        return self.login.startswith("root@")


def write_known(path: str, there: Way) -> None:
    """The host keys that are believed, by the names that `ssh` looks for."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(known_hosts(there.host_keys, there.jump_keys))


def ssh(there: Way, known: str, command: str, *, terminal: bool = False) -> list[str]:
    """An ssh that asks what it has to, and believes the pinned host keys alone."""
    options = [*_believing(known), f"HostKeyAlias={HERE}", "ForwardAgent=no",
               "ClearAllForwardings=yes", "RemoteCommand=none"]  # fmt: skip
    if there.jump:
        options.append(f"ProxyCommand={shlex.join(through(there, known))}")
    flags = [word for option in options for word in ("-o", option)]
    port = ["-p", str(there.port)] if there.port else []
    return [SSH, *flags, *port, "-t" if terminal else "-T", "--", there.login, command]


def _believing(known: str) -> list[str]:
    path = known.replace("%", "%%")
    return ["StrictHostKeyChecking=yes", f'UserKnownHostsFile="{path}"', "UpdateHostKeys=no",
            "GlobalKnownHostsFile=/dev/null", "CheckHostIP=no", "KnownHostsCommand=none",
            "VerifyHostKeyDNS=no", "NoHostAuthenticationForLocalhost=no",
            # A connection that is there already was made to whom others believed.
            "ControlMaster=no", "ControlPath=none"]  # fmt: skip


def through(there: Way, known: str) -> list[str]:
    """The ssh to the host on the way, as a word list with ssh's own escapes in it."""
    user, _, place = there.jump.rpartition("@")
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+))(?::([0-9]+))?", place)
    if not found:
        raise UsageError(f"{there.jump!r} is no way to go through", hint="write USER@HOST:PORT")
    options = [*_believing(known), f"HostKeyAlias={ON_THE_WAY}"] if there.jump_keys else []
    flags = [word for option in options for word in ("-o", option)]
    port = ["-p", found[3]] if found[3] else []
    login = f"{user}@{found[1] or found[2]}" if user else found[1] or found[2]
    words = [SSH, *flags, *port, "-W", "[%h]:%p", "--", login]
    return [w if w == "[%h]:%p" else w.replace("%", "%%") for w in words]


def on_terminal(
    argv: Sequence[str], stdin: int = 0, stdout: int = 1, hear: Callable[[], None] | None = None
) -> int:
    """Run a program on our terminal, in our session; its exit code. Meanwhile `hear` is called once.

    A program that is started in a session of its own could not ask for a password.
    """

    def become() -> None:
        try:
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            replace(argv, environment(os.environ))
        except OSError as error:
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(SSH_FAILED)

    sys.stdout.flush()
    sys.stderr.flush()
    pid = branch(become)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is told itself, and tells us
    try:
        if hear is not None:
            hear()
    finally:
        _, status = os.waitpid(pid, 0)
        signal.signal(signal.SIGINT, before)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """What of our own environment goes to ssh."""
    return {"PATH": "/usr/bin:/bin"} | {name: own[name] for name in OWN if name in own}


def scanning(there: Way, pinned: str, known: str, algorithm: str) -> list[str]:
    """An ssh that writes the key of that kind that a host shows into `known`, and does not log in."""
    write_known(pinned, there)
    path = known.replace("%", "%%")
    options = ["StrictHostKeyChecking=accept-new", f'UserKnownHostsFile="{path}"', "BatchMode=yes",
               "GlobalKnownHostsFile=/dev/null", f"HostKeyAlias={HERE}", "HashKnownHosts=no",
               f"HostKeyAlgorithms={algorithm}", "PreferredAuthentications=none",
               "UpdateHostKeys=no", "LogLevel=QUIET",
               f"ProxyCommand={shlex.join(through(there, pinned))}"]  # fmt: skip
    flags = [word for option in options for word in ("-o", option)]
    return [SSH, *flags, "-p", str(there.port), "-N", "-T", "--", there.login]
