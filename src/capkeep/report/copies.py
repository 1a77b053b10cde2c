"""Copies in `capkeep status`: how old the last complete one is, and whether the last one failed."""

from capkeep.records.copies import Copied
from capkeep.report.style import Style
from capkeep.report.text import age, clean


def copied_lines(copies: tuple[Copied, ...], style: Style, now: float) -> list[str]:
    """A sentence for each job and repository, and another where the last copy failed."""
    lines = []
    for one in copies:
        where = f"{clean(one.job)} into {clean(one.repository)}"
        if one.passed:
            ago = age(max(0.0, now - one.started))
            lines.append(f"  {where}: copied {ago} ago: {clean(one.text)}")
            continue
        ago = age(max(0.0, now - one.started))
        last = one.last_passed
        before = f"complete {age(max(0.0, now - last))} ago" if last else "none was complete yet"
        lines.append(
            f"  {where}: {style.verdict('failed')}: the copy {ago} ago: {clean(one.text)} ({before})"
        )
    return ["", *lines] if lines else []
