"""Which repositories' keys have been written down outside of this machine, as far as is known.

A note for each, in a directory that root alone can write and everybody may read.
"""

import json
import os

from capkeep.plan.places import Places


def notes(places: Places) -> str:
    """The directory of the notes."""
    return f"{places.state}/exported"


def never_exported(places: Places) -> list[str]:
    """The repositories of the plan whose key was never exported; none if the plan is not to be read.

    Decoding the whole plan would take longer than all the rest of `status`.
    """
    try:
        with open(places.plan, "rb") as file:
            return unexported(json.loads(file.read()), places)
    except (OSError, ValueError):
        return []


def unexported(plan: object, places: Places) -> list[str]:
    """The same of a plan that has been read, as it is written; none if it is no plan."""
    try:
        repositories = plan["repositories"]  # type: ignore[index]
        named = [str(r["name"]) for r in repositories if not r.get("key_exported")]
    except (TypeError, KeyError, AttributeError):
        return []
    return [name for name in named if not os.path.exists(f"{notes(places)}/{name}")]


def reminder(names: list[str]) -> tuple[str, str]:
    """The sentence, and what to do."""
    what = f"repository {names[0]}" if len(names) == 1 else f"repositories {', '.join(names)}"
    lost = "if this machine is lost, so is every backup there"
    how = f"capkeep key export {names[0]} --output FILE, as root, and keep FILE elsewhere"
    table = names[0].partition(".")[0]  # what is written once for all targets
    off = f"or say that it is kept: [repositories.{table}] key-exported = true"
    return f"the key of {what} was never exported: {lost}", f"{how}; {off}"
