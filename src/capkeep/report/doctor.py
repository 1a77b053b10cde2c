"""The ways to give the reader its capability, for people and for machines."""

from collections.abc import Iterator

from capkeep.errors import EXIT_COMPLETE, EXIT_FAILED
from capkeep.host.far_seen import Far
from capkeep.host.granting import works
from capkeep.host.ways_seen import Judged, Reason, State
from capkeep.report.style import Style
from capkeep.report.text import clean


def exit_code(ways: tuple[Judged, ...]) -> int:
    """0 if the way that is used works."""
    return EXIT_COMPLETE if works(ways) else EXIT_FAILED


def as_plain(ways: tuple[Judged, ...]) -> dict[str, object]:
    """All of it as JSON values."""
    return {
        "exit_code": exit_code(ways),
        "used": next((way.way for way in ways if way.used), ""),
        "ways": [
            {
                "way": way.way,
                "state": way.state,
                "used": way.used,
                "reasons": [r._asdict() for r in way.reasons],
                "remarks": [r._asdict() for r in way.remarks],
                "not_seen": way.not_seen,
            }
            for way in ways
        ],
    }


def far_as_plain(target: str, far: Far) -> dict[str, object]:
    """The same of a target."""
    about = {"target": target, "kernel": far.kernel, "capkeep": far.has_capkeep}
    return {**about, **as_plain(far.ways)}


def far_lines(target: str, far: Far, style: Style) -> Iterator[str]:
    """The same of a target."""
    who = "its own capkeep says" if far.has_capkeep else "no capkeep is there"
    yield f"{style.bold(target)}: Linux {clean(far.kernel)}, {who}"
    yield from lines(far.ways, style, "used there" if far.has_capkeep else "enroll would choose it")


def lines(ways: tuple[Judged, ...], style: Style, used_words: str = "used here") -> Iterator[str]:
    """Each way with its reasons, in the order in which they are to be preferred."""
    for way in ways:
        paint = {State.WORKS: style.good, State.BLOCKED: style.bad}.get(way.state, style.dim)
        used = f"  ({used_words})" if way.used else ""
        yield f"{style.bold(way.way)}: {paint(way.state)}{used}"
        for reason in way.reasons:
            yield from _reason(reason, "")
        for remark in way.remarks:
            yield from _reason(remark, "note: ")
        if way.not_seen:
            yield f"  not looked at: {clean(way.not_seen)}"


def _reason(reason: Reason, mark: str) -> Iterator[str]:
    yield f"  {mark}{clean(reason.text)}"
    if reason.mend:
        yield f"    mend: {clean(reason.mend)}"
