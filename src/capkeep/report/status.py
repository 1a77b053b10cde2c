"""How the jobs are, as a table for people and as JSON for monitoring."""

from typing import NamedTuple

from capkeep.errors import EXIT_FAILED
from capkeep.records.copies import Copied
from capkeep.records.drills import Proven
from capkeep.records.judge import State, Verdict, exit_code
from capkeep.records.model import JobStatus, Outcome, Run, Step, elapsed
from capkeep.records.notices import Notice
from capkeep.records.upkeep import Upkeep
from capkeep.report.copies import copied_lines
from capkeep.report.drill import plain_proven, proven_lines
from capkeep.report.style import Style
from capkeep.report.text import age, clean, duration, moment, number, size, table
from capkeep.report.times import NextTimes, plain_times, weekday_and_time
from capkeep.report.upkeep import plain_upkeep, upkeep_lines
from capkeep.values import format_duration


class JobReport(NamedTuple):
    """One job: what is known, and what that means."""

    verdict: Verdict
    max_age: int  # seconds, 0: no promise
    status: JobStatus | None  # None: it has never run
    schedules: tuple[NextTimes, ...] = ()


class Overview(NamedTuple):
    """All jobs, and the last check of each repository."""

    jobs: tuple[JobReport, ...]
    checks: tuple[Step, ...]
    now: float
    undelivered: tuple[Notice, ...] = ()  # of which runs somebody is still to be told
    upkeep: tuple[Upkeep, ...] = ()
    proven: tuple[Proven, ...] = ()
    copies: tuple[Copied, ...] = ()

    def exit_code(self) -> int:
        """For monitoring: 0 all in order, 3 nothing worse than partial, else 1."""
        if any(one.suspect for one in self.upkeep) or not all(one.passed for one in self.proven):
            return EXIT_FAILED
        if any(step.outcome is not Outcome.COMPLETE for step in self.checks):
            return EXIT_FAILED
        if not all(one.passed for one in self.copies):
            return EXIT_FAILED
        return exit_code(tuple(report.verdict for report in self.jobs))


def as_plain(overview: Overview) -> dict[str, object]:
    """The overview as JSON values; times in seconds since 1970, durations in seconds."""
    return {
        "exit_code": overview.exit_code(),
        "jobs": [_plain_job(report) for report in overview.jobs],
        "checks": [plain_step(step) for step in overview.checks],
        "undelivered": [notice._asdict() for notice in overview.undelivered],
        "upkeep": [plain_upkeep(one) for one in overview.upkeep],
        "drills": [plain_proven(one) for one in overview.proven],
        "copies": [one._asdict() for one in overview.copies],
    }


def _plain_job(report: JobReport) -> dict[str, object]:
    verdict, status = report.verdict, report.status
    return {
        "job": verdict.job,
        "state": verdict.state,
        "text": verdict.text,
        "age_seconds": verdict.age,
        "max_age_seconds": report.max_age,
        "last": plain_run(_last(status)),
        "last_complete": plain_run(status.last_complete) if status else None,
        "running": plain_run(status.running) if status else None,
        "totals": status.totals._asdict() if status and status.last_complete else None,
        "schedules": plain_times(report.schedules),
    }


def plain_run(run: Run | None) -> dict[str, object] | None:
    """A run as JSON values."""
    return {**run._asdict(), "reasons": list(run.reasons)} if run else None


def plain_step(step: Step) -> dict[str, object]:
    """A step as JSON values."""
    return {**step._asdict(), "totals": step.totals._asdict()}


def overview_lines(overview: Overview, style: Style) -> list[str]:
    """The table, and a sentence for each job that is not in order."""
    if not overview.jobs and not overview.checks:
        return ["no job has run, and there is no plan: see `capkeep apply`"]
    lines = []
    if overview.jobs:
        heading = ["job", "state", "last run", "last complete", "size", "files"]
        lines = _coloured(table([heading, *(_row(r, overview.now) for r in overview.jobs)]), style)
    for report in overview.jobs:
        lines += _remarks(report, overview.now)
    if overview.checks:
        rows = [["repository", "last check", "", ""]]
        rows += [_check_row(step, overview.now) for step in overview.checks]
        lines += ["", *_coloured(table(rows), style)]
    lines += upkeep_lines(overview.upkeep, style, overview.now)
    lines += proven_lines(overview.proven, style, overview.now)
    lines += copied_lines(overview.copies, style, overview.now)
    return lines + _undelivered(overview)


def _undelivered(overview: Overview) -> list[str]:
    """A line for each channel that is still to be told of something."""
    lines = []
    for channel in dict.fromkeys(notice.channel for notice in overview.undelivered):
        mine = [notice for notice in overview.undelivered if notice.channel == channel]
        runs = "1 run" if len(mine) == 1 else f"{len(mine)} runs"
        since = age(max(0.0, overview.now - mine[0].started))
        lines.append(
            f"  notify {clean(channel)}: could not be told of {runs}, the oldest {since} ago:"
            f" {clean(mine[-1].text)}"
        )
    return ["", *lines] if lines else []


def _row(report: JobReport, now: float) -> list[str]:
    verdict, status = report.verdict, report.status
    last = _last(status)
    size_text = files = "-"
    if status and status.last_complete:
        size_text = size(status.totals.bytes_processed)
        files = number(status.totals.total_files)
    return [
        clean(verdict.job), verdict.state, _ago(last, now) if last else "never",
        f"{age(verdict.age)} ago" if verdict.age is not None else "never", size_text, files,
    ]  # fmt: skip


def _ago(run: Run, now: float) -> str:
    return f"{run.outcome} {age(max(0.0, now - run.started))} ago"


def _remarks(report: JobReport, now: float) -> list[str]:
    verdict, status = report.verdict, report.status
    lines = []
    if verdict.state is not State.FRESH:
        promise = f" (max-age {age(report.max_age)})" if verdict.state is State.LATE else ""
        lines.append(f"  {clean(verdict.job)}: {clean(verdict.text)}{promise}")
    lines += [_next_line(verdict.job, found) for found in report.schedules if found.times]
    run = status.running if status else None
    if run is not None:
        who = clean(run.trigger_user) or f"uid {run.trigger_uid}"
        took = duration(elapsed(run.started, None, None, now))
        lines.append(
            f"  {clean(verdict.job)}: {clean(run.action)} running for {took}, since"
            f" {moment(run.started)}, asked for by {who} [run {clean(run.id)}]"
        )
    return lines


def _next_line(job: str, found: NextTimes) -> str:
    spread = found.table.spread_seconds
    later = f", up to {format_duration(spread)} later" if spread else ""
    return f"  {clean(job)}: next {found.table.kind} {weekday_and_time(found.times[0])}{later}"


def _check_row(step: Step, now: float) -> list[str]:
    took = duration(step.seconds) if step.seconds is not None else "?"
    return [
        clean(step.repository), str(step.outcome), f"{age(max(0.0, now - step.started))} ago, {took}",
        clean(step.text) if step.outcome is not Outcome.COMPLETE else "",
    ]  # fmt: skip


def _coloured(lines: list[str], style: Style) -> list[str]:
    """Colour after the columns are laid out: the first two words of a row are name and state."""
    coloured = [style.dim(lines[0])]
    for line in lines[1:]:
        name, gap, rest = line.partition("  ")
        word = rest.split(maxsplit=1)[0] if rest.strip() else ""
        coloured.append(name + gap + rest.replace(word, style.verdict(word), 1) if word else line)
    return coloured


def _last(status: JobStatus | None) -> Run | None:
    return status.latest[-1] if status and status.latest else None
