"""What drills have proven, in `capkeep status`: when the last one passed, how much was restored, how fast."""

from capkeep.records.drills import Coverage, Proven
from capkeep.report.style import Style
from capkeep.report.text import age, clean, duration, number, size


def plain_proven(one: Proven) -> dict[str, object]:
    """As JSON values; times in seconds since 1970, durations in seconds."""
    plain = {k: v for k, v in one._asdict().items() if k not in ("month", "year", "earlier")}
    earlier = one.earlier
    return {
        **plain, "days_30": one.month._asdict(), "days_365": one.year._asdict(),
        "earlier": {
            "drills": earlier.drills, "median_seconds": earlier.seconds,
            "median_bytes_per_second": earlier.bytes_per_second,
        } if earlier else None,
    }  # fmt: skip


def proven_lines(proven: tuple[Proven, ...], style: Style, now: float) -> list[str]:
    """A sentence for each job and repository, and another where the last drill did not pass."""
    lines = []
    for one in proven:
        where = f"{clean(one.job)} in {clean(one.repository)}"
        if one.last_passed is None:
            lines.append(f"  {where}: {style.verdict('failed')}: no drill has passed yet")
        else:
            ago = age(max(0.0, now - one.last_passed))
            lines.append(
                f"  {where}: proven {ago} ago{_took(one)}; {_covered(one.month, one.year)}"
            )
        lines += [f"  {where}: not proven: the dump at {clean(text)}" for text in one.unproven]
        if not one.passed:
            ago = age(max(0.0, now - one.started))
            lines.append(
                f"  {where}: {style.verdict('failed')}: the drill {ago} ago: {clean(one.text)}"
            )
    return ["", *lines] if lines else []


def _took(one: Proven) -> str:
    """How long it restored; how fast only beside others, since a small sample is slow by itself."""
    if not one.passed or not one.seconds:
        return ""
    text = f", restored in {duration(one.seconds)}"
    earlier = one.earlier
    if earlier is None or one.bytes_per_second is None:
        return text
    usual = f"median of {earlier.drills} before: {size(earlier.bytes_per_second)}/s"
    return f"{text} at {size(one.bytes_per_second)}/s ({usual})"


def _covered(month: Coverage, year: Coverage) -> str:
    return (
        f"{number(month.files)} files ({size(month.bytes)}) in 30 days,"
        f" {number(year.files)} ({size(year.bytes)}) in 365"
    )
