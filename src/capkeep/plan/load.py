"""Read the compiled plan that `apply` left, and refuse one that anybody else could have written."""

import json
import os
import stat

from capkeep.errors import RefusedError
from capkeep.plan import codec
from capkeep.plan.model import PLAN_VERSION, Places, Plan


class NoPlanError(RefusedError):
    """Nothing has been applied here yet."""


def load_plan(places: Places, *, in_room: bool = False) -> Plan:
    """The plan of this host. Raises NoPlanError, RefusedError, DecodeError.

    `in_room`: for a room's own program, which is shown the plan by whoever has read it as root's.
    """
    head = load_head(places, in_room=in_room)
    if head.get("version") != PLAN_VERSION:
        raise RefusedError(
            f"{places.plan} was written by capkeep {head.get('capkeep_version')}",
            hint="run `capkeep apply` with the capkeep that is installed now",
        )
    return codec.from_plain(Plan, head)


def load_head(places: Places, *, in_room: bool = False) -> dict[str, object]:
    """The plan as it is written, of any version. Raises NoPlanError, RefusedError."""
    path = places.plan
    try:
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            text = file.read()
    except FileNotFoundError as error:
        raise NoPlanError(
            f"there is no plan at {path}", hint="run `capkeep apply` first"
        ) from error
    except PermissionError as error:
        raise RefusedError(
            f"you may not read {path}",
            hint="join the group that [host] group names (usually capkeep), then log in again",
        ) from error
    trusted = state.st_uid in (0, os.geteuid()) or (in_room and _looks_like_root_s(state.st_uid))
    if not trusted or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RefusedError(
            f"{path} could have been written by others than root",
            hint="find out who changed it, then run `capkeep apply` again",
        )
    try:
        head = json.loads(text)
    except ValueError as error:
        raise RefusedError(
            f"{path} is damaged: {error}", hint="`capkeep apply` writes it anew"
        ) from error
    if not isinstance(head, dict):
        raise RefusedError(f"{path} is damaged", hint="`capkeep apply` writes it anew")
    return head


def _looks_like_root_s(uid: int) -> bool:
    """Whether this is a user namespace without root, in which root's files look like nobody's."""
    from capkeep.kernel.facts import OVERFLOW_ID  # only where it is asked

    with open("/proc/self/uid_map", "rb") as file:
        maps = [tuple(map(int, line.split())) for line in file]
    return uid == OVERFLOW_ID and all(first > 0 for first, _, _ in maps)
