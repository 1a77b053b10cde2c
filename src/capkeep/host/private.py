"""What no hook is shown, whatever its configuration says: places that one room alone works with."""

import os

from capkeep.config.mistakes import Collector, MistakesError, Place
from capkeep.config.model import Config
from capkeep.plan.hidden import hidden
from capkeep.plan.model import Plan
from capkeep.values import is_at_or_below


def refuse_private(plan: Plan, config: Config) -> None:
    """Raises MistakesError for hooks that would be shown what rooms that read files never see.

    Secrets, repositories, and the other rooms' sockets and caches: so a hook's capability, or its
    user's group, has nothing of them to read.
    """
    private = {*map(os.path.realpath, hidden(config, plan.places))}
    collector = Collector()
    for room in plan.rooms:
        shown = (*room.grant.read, *room.grant.sockets, *room.grant.shared) if room.hook else ()
        for path in shown:
            for place in sorted(private):
                if is_at_or_below(path, place) or is_at_or_below(place, path):
                    here = "lies in" if is_at_or_below(path, place) else "holds"
                    collector.mistake(
                        _place(config, room.hook, path),
                        f"{path} {here} {place}, which only the room that works with it sees",
                        "name more narrowly what the hook needs",
                    )
    if collector.mistakes:
        raise MistakesError(collector.mistakes)


def _place(config: Config, hook: str, path: str) -> Place:
    """Where it is written that the hook sees it."""
    for key in ("read", "write", "sockets", "command"):
        setting = config.settings.get(f"hooks.{hook}.{key}")
        written = setting.value if setting and isinstance(setting.value, list) else []
        if any(is_at_or_below(os.path.realpath(str(word)), path) for word in written):
            return (setting and setting.place) or Place(config.files[0], 0, f"hooks.{hook}.{key}")
    return Place(config.files[0], 0, f"hooks.{hook}")
