"""A room's part of the plan and its secrets, as its program finds them."""

from typing import Final

from capkeep.plan import codec
from capkeep.plan.model import Brief

BRIEF_FD: Final = 3


def read_brief() -> Brief:
    """Read once, from the descriptor that the parent left. Raises DecodeError, OSError."""
    with open(BRIEF_FD, "rb") as file:
        return codec.loads(Brief, file.read())
