"""The ssh that leads from a puller to its target, and what its end means."""

import os
import re
import shlex
from collections.abc import Iterable
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.plan.model import Target
from capkeep.rooms.rest.ssh import OPTIONS, SSH, Login, Ssh, remove_dead_agents

WORD: Final = "capkeep-pull"  # what is asked for; a login with a forced command does not read it
HERE, ON_THE_WAY = "capkeep-target", "capkeep-jump"  # by which names their keys are known
# Before those that every ssh of ours has: of each option the first one counts (ssh_config(5)).
LIVELY: Final = ("ServerAliveInterval=5", "ServerAliveCountMax=3")
SETTABLE: Final = (
    "AddressFamily", "BindAddress", "Ciphers", "Compression", "ConnectTimeout", "HostKeyAlgorithms",
    "IPQoS", "KexAlgorithms", "MACs",
)  # fmt: skip
_CHANGED: Final = (
    "{0} SHOWS ANOTHER HOST KEY THAN THE CONFIGURATION HAS: somebody may stand between you and it, and"
    " nothing was sent; if its keys are new, have their fingerprints from its owner and write them there"
)
_REFUSED: Final = "{0} does not let us in: our key is not, or not any more, in its authorized_keys"
ALLOW: Final = "add our public key to authorized_keys there, for this login"
_LOUD: Final = r"identification has changed|host key (is )?known|host key verification failed"
_SHUT: Final = re.compile(r"permission denied \(|too many authentication", re.IGNORECASE)
_AWAY: Final = r"kex_exchange|could not resolve|ssh: connect to|stdio forwarding failed"
_STRANGE: Final = (
    rf"{WORD}|not found|no such file|no module named|cannot execute|currently not available"
)
_SAID: Final = (
    (re.compile(_LOUD, re.IGNORECASE), Failure.DENIED, _CHANGED, "capkeep target scan {0}"),
    (_SHUT, Failure.DENIED, _REFUSED, "capkeep enroll {0}"),
    (re.compile(_AWAY, re.IGNORECASE), Failure.UNREACHABLE, "{0} cannot be reached", ""),
    (re.compile(_STRANGE, re.IGNORECASE), Failure.REFUSED,
     "{0} lets us in, and no capkeep answers there", "capkeep enroll {0}"),
)  # fmt: skip


def known_hosts(host_keys: Iterable[str], jump_keys: Iterable[str]) -> str:
    """A file of the keys that are believed (sshd(8), SSH_KNOWN_HOSTS), by the names above."""
    lines = [f"{HERE} {key}\n" for key in host_keys]
    lines += [f"{ON_THE_WAY} {key}\n" for key in jump_keys]
    return "".join(lines)


def connect(target: Target, identity: str, folder: str) -> Ssh:
    """An ssh to the target, not started yet; in `folder` its keys are noted. Raises OSError."""
    os.makedirs(folder, 0o700, exist_ok=True)
    remove_dead_agents(folder)
    known = f"{folder}/known_hosts"
    draft = f"{known}.{os.getpid()}"
    with open(draft, "w", encoding="utf-8") as file:
        file.write(known_hosts(target.host_keys, target.jump_keys))
    os.rename(draft, known)
    own = tuple(f"{name}={value}" for name, value in target.options if name in SETTABLE)
    way = (_way(target, known, own),) if target.jump else ()
    login = Login(
        host=target.host, port=target.port, user=target.user, known_hosts=known,
        identity=identity, options=(f"HostKeyAlias={HERE}", *way, *own, *LIVELY),
    )  # fmt: skip
    return Ssh(login, folder, WORD, threads=False)


def _way(target: Target, known: str, own: tuple[str, ...]) -> str:
    """The option by which ssh goes through another host, with another ssh like itself."""
    user, _, place = target.jump.rpartition("@")
    host, _, port = place.rpartition(":")
    options = (f"HostKeyAlias={ON_THE_WAY}", *own, *LIVELY, *OPTIONS)
    options += (f'UserKnownHostsFile="{known.replace("%", "%%")}"', f"Port={port}", f"User={user}")
    flags = [word for option in options for word in ("-o", option)]
    argv = [SSH, "-F", "none", *flags, "-T", "-x", "-a", "-W", "[%h]:%p", "--", host.strip("[]")]
    # Read by ssh itself, for its escapes, and then by a shell; the target's name is the one escape.
    words = [word if word == "[%h]:%p" else word.replace("%", "%%") for word in argv]
    return f"ProxyCommand={shlex.join(words)}"


def explain(ssh: Ssh, target: Target, text: str, *, greeted: bool) -> StepError:
    """Why the connection is gone; once greeted, what is said there is the target's own word."""
    last = ssh.words()
    if not greeted:
        for pattern, failure, sentence, mend in _SAID:
            if pattern.search(ssh.said()):
                there = _is_of_the_way(ssh.said(), target)
                who = target.jump if there else target.name
                hint = ALLOW if there and pattern is _SHUT else mend.format(target.name)
                return StepError(failure, f"{sentence.format(who)} ({last})", hint=hint)
    return StepError(Failure.UNREACHABLE, f"{target.name}: {text}" + (f" ({last})" if last else ""))


def _is_of_the_way(said: str, target: Target) -> bool:
    """Whether the host on the way is meant: by its key's name, or, where it shuts us out, by its own."""
    login, _, _ = target.jump.rpartition(":")
    shut_out = f"{login.replace('[', '').replace(']', '')}: Permission denied"
    own = f"{target.user}@{target.host}: Permission denied"
    return f" {ON_THE_WAY} " in f" {said} " or (shut_out != own and shut_out in said)
