"""Names that tables call each other by: each is defined, named once, and used by somebody."""

from collections.abc import Collection, Iterable, Mapping

from capkeep.config.mistakes import Collector, Place, nearest


def check_names(
    entries: Iterable[tuple[str, Place]],
    word: str,
    table: str,
    known: Collection[str],
    collector: Collector,
    *,
    all_read: bool,
) -> None:
    """A mistake for every name in a list that is not defined, or is there twice.

    `word` is what such a thing is called, `table` where it is defined. Unless all was read,
    nothing is said of names that are not known.
    """
    seen: set[str] = set()
    for name, place in entries:
        if name in seen:
            collector.mistake(place, f"{word} {name} is named twice", "name it once")
        elif name not in known and all_read:
            guess = nearest(name, known)
            hint = f'did you mean "{guess}"?' if guess else f"define [{table}.{name}]"
            collector.mistake(place, f"there is no {word} {name!r}", hint)
        seen.add(name)


def remark_unused(
    places: Mapping[str, Place], used: Iterable[str], told: str, key: str, collector: Collector
) -> None:
    """A remark for everything that no job names under `key`; `told` is what no job does."""
    taken = set(used)
    for name, place in places.items():
        if name not in taken:
            hint = f'write {key} = ["{name}"] in one'
            collector.remark(place, f"no job {told} {name}", hint)
