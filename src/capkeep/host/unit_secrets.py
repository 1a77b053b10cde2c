"""How a unit gets its brief and its secrets: as systemd's credentials; pure but for looking at paths.

They are in memory that only the unit may read (systemd.exec(5), LoadCredential=). A secret that a
command prints has a socket of its own: systemd connects to it and takes what the command says.
"""

import os
from collections.abc import Iterator

from capkeep.errors import RefusedError
from capkeep.host import unit_text
from capkeep.host.unit_text import Unit
from capkeep.plan.model import WIRED, Plan, Room, Secret
from capkeep.values import GIVEN_STORES, PLAIN_STORES, SEALED_STORES


def credential(name: str, path: str) -> str:
    """A line that gives a unit a file's content. Raises RefusedError for a name systemd cannot pass.

    Its executor (257) splits the path where there is a space, and starts nothing.
    """
    if path.split() != [path]:
        raise RefusedError(
            f"systemd cannot hand over {path!r}: there is a space in its name",
            hint="rename it",
        )
    return f"LoadCredential={name}:{unit_text.plain(path)}"


def credentials(plan: Plan, room: Room) -> Iterator[str]:
    """A line for each secret of a room. Its name is what the room looks for (rooms/brief.py)."""
    for secret in room.secrets:
        source = secret.source
        if source.credential:
            yield _stored(source.credential)
        else:
            yield credential(secret.name, source.file or socket_path(plan, room, secret))


def _stored(name: str) -> str:
    """A credential goes by its own name: a sealed one has it inside (systemd-creds(1))."""
    for store in SEALED_STORES:
        if os.path.lexists(f"{store}/{name}"):
            return (
                f"LoadCredentialEncrypted={unit_text.plain(name)}:{store}/{unit_text.plain(name)}"
            )
    # Of a container's own stores only those that last: what `apply` itself was given is gone with it.
    stores = PLAIN_STORES + GIVEN_STORES
    store = next((s for s in stores if os.path.lexists(f"{s}/{name}")), PLAIN_STORES[0])
    return f"LoadCredential={unit_text.plain(name)}:{store}/{unit_text.plain(name)}"


def sockets(plan: Plan) -> tuple[str, ...]:
    """The names, without suffix, of the sockets behind which commands print secrets."""
    return tuple(_name(plan, room, secret) for room, secret in _printed(plan))


def units(plan: Plan) -> Iterator[Unit]:
    """A socket and a service for every secret that a command prints."""
    for room, secret in _printed(plan):
        name = _name(plan, room, secret)
        what = unit_text.plain(f"capkeep: the secret {secret.name} of {room.name}")
        yield Unit(
            f"{name}.socket",
            unit_text.text([
                "[Unit]",
                f"Description={what}",
                "",
                "[Socket]",
                f"ListenStream={unit_text.plain(socket_path(plan, room, secret))}",
                "Accept=yes",
                "SocketUser=root",  # systemd itself asks
                "SocketMode=0600",
                "RemoveOnStop=yes",
                "",
                "[Install]",
                "WantedBy=sockets.target",
            ]),
        )  # fmt: skip
        yield Unit(
            f"{name}@.service",
            unit_text.text([
                "[Unit]",
                f"Description={what}",
                "CollectMode=inactive-or-failed",
                "",
                "[Service]",
                f"ExecStart={unit_text.command(secret.source.command)}",
                "StandardInput=null",
                "StandardOutput=socket",
                "StandardError=journal",
                f"User={room.grant.uid}",
                f"Group={room.grant.gid}",
                "CapabilityBoundingSet=",
                "NoNewPrivileges=yes",
                "ProtectSystem=strict",
                "PrivateTmp=yes",
                "RuntimeMaxSec=30",
                "LimitCORE=0",
            ]),
        )  # fmt: skip


def socket_path(plan: Plan, room: Room, secret: Secret) -> str:
    """Where a secret's command is asked."""
    return f"{plan.places.run}/secret-{room.name}-{secret.name}.sock"


def _printed(plan: Plan) -> Iterator[tuple[Room, Secret]]:
    """Those of rooms that have units: the others are started by root's own hand."""
    for room in plan.rooms:
        if room.door or room.kind in WIRED:
            yield from ((room, s) for s in room.secrets if s.source.command)


def _name(plan: Plan, room: Room, secret: Secret) -> str:
    return f"{plan.name}-secret-{room.name}-{secret.name}"
