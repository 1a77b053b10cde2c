"""How repositories are kept, in `capkeep status`: suspect, how much was read, what was removed."""

from capkeep.records.model import Outcome
from capkeep.records.upkeep import Upkeep
from capkeep.report.style import Style
from capkeep.report.text import age, clean


def plain_upkeep(one: Upkeep) -> dict[str, object]:
    """As JSON values; times in seconds since 1970."""
    return {
        "repository": one.repository,
        "suspect": one.suspect,
        "rotation_seconds": one.within,
        "coverage": one.coverage._asdict() if one.coverage else None,
        "retention": {
            "started": one.retention.started, "outcome": one.retention.outcome,
            "text": one.retention.text, "held": one.held,
        } if one.retention else None,
    }  # fmt: skip


def upkeep_lines(kept: tuple[Upkeep, ...], style: Style, now: float) -> list[str]:
    """A sentence for each thing worth saying."""
    lines = []
    for one in kept:
        name = clean(one.repository)
        if one.suspect:
            lines.append(
                f"  {name}: {style.verdict('suspect')}: its last check or drill found errors, so nothing is"
                " removed from it until one finds none"
            )
        if one.coverage:
            lines.append(f"  {name}: {_read(one, now)}")
        if one.retention:
            ago = f"{age(max(0.0, now - one.retention.started))} ago"
            said = clean(one.retention.text)
            if one.retention.outcome is not Outcome.COMPLETE:
                said = f"failed: {said}"
            lines.append(f"  {name}: retention {ago}: {said}")
    return ["", *lines] if lines else []


def _read(one: Upkeep, now: float) -> str:
    assert one.coverage is not None, "asked before"
    text = f"{one.coverage.share:.0%} of the data was read in the last {age(one.within)}"
    if one.coverage.oldest is None:
        return text + ", some of it never yet"
    return text + f", all of it in the last {age(max(0.0, now - one.coverage.oldest))}"
