"""How the jobs are, as a monitoring plugin says it.

Source: the Monitoring Plugins' development guidelines (one line, exit codes, performance data).
"""

from collections.abc import Iterator
from typing import Final

from capkeep.records.judge import State
from capkeep.records.model import Outcome
from capkeep.report.status import JobReport, Overview
from capkeep.report.text import age, clean

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
_NAMES: Final = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
# A partial backup lacks files: that is not "nearly fine".
_GRADES: Final = {State.FRESH: OK, State.RUNNING: WARNING, State.NEVER: WARNING}


def answer(overview: Overview) -> tuple[int, str]:
    """The exit code and the line."""
    if not overview.jobs:
        return _line(UNKNOWN, ["no job is known here: see capkeep apply"], [])
    grade = OK
    said = []
    for report in overview.jobs:
        verdict = report.verdict
        mine = _GRADES.get(verdict.state, CRITICAL)
        grade = max(grade, mine)
        if mine != OK:
            said.append(f"{clean(verdict.job)} is {verdict.state}: {clean(verdict.text)}")
    if broken := list(_broken(overview)):
        grade = CRITICAL
        said += broken
    if overview.undelivered:
        grade = max(grade, WARNING)
        names = dict.fromkeys(clean(n.channel) for n in overview.undelivered)
        said.append(f"undelivered notices: {', '.join(names)}")
    if not said:
        ages = [r.verdict.age for r in overview.jobs if r.verdict.age is not None]
        oldest = f", the oldest backup is {age(max(ages))} old" if ages else ""
        count = len(overview.jobs)
        said.append(f"{count} job{'s are' if count != 1 else ' is'} fresh{oldest}")
    return _line(grade, said, [p for report in overview.jobs for p in _performance(report)])


def _broken(overview: Overview) -> Iterator[str]:
    """Repositories from which perhaps nothing can be restored."""
    for step in overview.checks:
        if step.outcome is not Outcome.COMPLETE:
            yield f"the check of {clean(step.repository)} {step.outcome}: {clean(step.text)}"
    for one in overview.upkeep:
        if one.suspect:
            yield f"{clean(one.repository)} is suspect: a check or drill found errors in it"
    for drill in overview.proven:
        if not drill.passed:
            where = f"{clean(drill.job)} in {clean(drill.repository)}"
            yield f"the drill of {where} failed: {clean(drill.text)}"
    for copy in overview.copies:
        if not copy.passed:
            where = f"{clean(copy.job)} into {clean(copy.repository)}"
            yield f"the copy of {where} failed: {clean(copy.text)}"


def unknown(error: Exception) -> tuple[int, str]:
    """When it cannot be found out."""
    return _line(UNKNOWN, [clean(str(error))], [])


def _line(grade: int, said: list[str], performance: list[str]) -> tuple[int, str]:
    # What follows the first bar is performance data.
    text = "; ".join(said).replace("|", "/")
    numbers = f" | {' '.join(performance)}" if performance else ""
    return grade, f"CAPKEEP {_NAMES[grade]} - {text}{numbers}"


def _performance(report: JobReport) -> list[str]:
    """'label'=value[unit];warning;critical;minimum."""
    verdict, status = report.verdict, report.status
    found = []
    if verdict.age is not None:
        limit = str(report.max_age) if report.max_age else ""
        found.append(_number(verdict.job, "age", f"{verdict.age:.0f}s;;{limit};0"))
    if status and status.last_complete:
        found.append(_number(verdict.job, "files", f"{status.totals.total_files};;;0"))
        found.append(_number(verdict.job, "size", f"{status.totals.bytes_processed}B;;;0"))
        seconds = status.last_complete.seconds
        if seconds is not None:
            found.append(_number(verdict.job, "duration", f"{seconds:.1f}s;;;0"))
    return found


def _number(job: str, what: str, value: str) -> str:
    label = clean(f"{job}_{what}").replace("'", "").replace("=", "")
    return f"'{label}'={value}"
