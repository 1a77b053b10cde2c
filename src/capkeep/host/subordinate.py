"""Ids that belong to a user beside his own, as subuid(5) and subgid(5) keep them.

The prover gives restored files their owners in a user namespace of such ids. An entry there keeps
everybody else from taking the same ones.
"""

from collections.abc import Iterator
from functools import partial
from typing import Final

from capkeep.host.changes import Change, Undo
from capkeep.host.commands import run_command
from capkeep.host.users import UserError
from capkeep.plan.model import Mode, Plan, RoomKind

FILES: Final = ("/etc/subuid", "/etc/subgid")
COUNT: Final = 1 << 16  # every id that a system's own users have, and nobody
# Above what container managers and directories of users take (systemd's docs/UIDS-GIDS.md).
LOWEST: Final = 0x70000000
HIGHEST: Final = 0x7FFE0000
USERMOD: Final = "/usr/sbin/usermod"


def ids_of(user: str, files: tuple[str, ...] = FILES) -> tuple[int, int]:
    """First and number of those that the user has, or would be given; (0, 0) where none are left."""
    entries = [list(_entries(path)) for path in files]
    # Below COUNT are this system's own users: in a namespace of theirs a prover would be all of them.
    own = [
        {(f, n) for name, f, n in found if name == user and n >= COUNT <= f} for found in entries
    ]
    if both := set.intersection(*own):
        return min(both)[0], COUNT
    first = LOWEST
    for start, number in sorted({(f, n) for found in entries for _, f, n in found}):
        if start < first + COUNT and first < start + number:
            first = start + number
    return (first, COUNT) if first + COUNT <= HIGHEST else (0, 0)


def changes(plan: Plan) -> Iterator[Change]:
    """The entries that the plan's provers need."""
    if plan.mode is not Mode.SYSTEM:
        return
    rooms = [r for r in plan.rooms if r.kind is RoomKind.PROVER and r.grant.subordinate[1]]
    for user, ids in dict.fromkeys((r.grant.user, r.grant.subordinate) for r in rooms):
        what = f"subordinate ids of {user}: {ids[0]} to {ids[0] + ids[1] - 1}"
        yield Change(what, partial(_is_missing, user, ids), partial(_give, user, ids))


def _is_missing(user: str, ids: tuple[int, int]) -> bool:
    return not all(
        any(name == user and first <= ids[0] and first + number >= sum(ids)
            for name, first, number in _entries(path))
        for path in FILES
    )  # fmt: skip


def _give(user: str, ids: tuple[int, int]) -> Undo:
    _change("add", user, ids)
    return partial(_change, "del", user, ids)


def _change(how: str, user: str, ids: tuple[int, int]) -> None:
    """By usermod(8), which keeps others from writing the same files meanwhile. Raises UserError."""
    text = f"{ids[0]}-{sum(ids) - 1}"
    argv = (USERMOD, f"--{how}-subuids", text, f"--{how}-subgids", text, user)
    code, output = run_command(argv, timeout=60)
    if code != 0:
        raise UserError(f"usermod failed for {user}: {output.strip()}")


def _entries(path: str) -> Iterator[tuple[str, int, int]]:
    """User (a name, seldom a number), first id and number of ids."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        fields = line.split(":")
        if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
            yield fields[0], int(fields[1]), int(fields[2])
