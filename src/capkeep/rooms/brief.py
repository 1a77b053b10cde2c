"""A room's part of the plan and its secrets, as its program finds them.

A parent of our own leaves all of it on a descriptor. systemd leaves the plan's part and each secret
as credentials (systemd.exec(5), LoadCredential=), and the rest is to be found out here.
"""

import os
import socket
from typing import Final

from capkeep.errors import Failure, StepError
from capkeep.kernel.facts import peer_uid
from capkeep.plan import codec
from capkeep.plan.model import Brief, Outside
from capkeep.values import secret_text

BRIEF_FD: Final = 3
CALLER_FD: Final = 0


def read_brief() -> Brief:
    """Read once. Raises DecodeError, OSError, StepError for a secret that is not there."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if directory:
        return _from_credentials(directory)
    with open(BRIEF_FD, "rb") as file:
        return codec.loads(Brief, file.read())


def _from_credentials(directory: str) -> Brief:
    brief = codec.loads(Brief, _read(directory, "brief"))
    host = codec.loads(Outside, _read(directory, "host"))
    with socket.socket(fileno=os.dup(CALLER_FD)) as caller:
        uid = peer_uid(caller)
    return brief._replace(
        peer_uid=uid,
        hostname=os.uname().nodename,
        host_namespaces=host.namespaces,
        walls=brief.walls._replace(filters=host.filters),
        secrets=tuple(
            (s.name, _secret(directory, s.source.credential or s.name)) for s in brief.room.secrets
        ),
    )


def _secret(directory: str, name: str) -> str:
    text = secret_text(_read(directory, name))
    if not text:
        raise StepError(
            Failure.ENGINE,
            f"secret {name} is empty",
            hint="what its file holds, or its command prints; the journal has the command's words",
        )
    return text


def _read(directory: str, name: str) -> bytes:
    with open(f"{directory}/{name}", "rb") as file:
        return file.read()
