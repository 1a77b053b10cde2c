"""A job's tables `check` and `retention`, checked."""

from collections.abc import Sequence
from typing import Final, Protocol

from capkeep.config import syntax
from capkeep.config.mistakes import Collector, Place
from capkeep.config.model import CheckConfig, RetentionConfig
from capkeep.config.schedules import check_calendar
from capkeep.values import ValueMistake, format_duration

KEEP: Final = (
    "keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly",
    "keep_within", "keep_tags",
)  # fmt: skip
OWN_TAG: Final = "capkeep:"  # what capkeep's own tags begin with


class Table(Protocol):
    """A job's table with what it takes from the defaults."""

    @property
    def name(self) -> str:
        """The job's."""

    @property
    def model(self) -> syntax.Job:
        """What holds."""

    def at(self, field: str, *path: str | int) -> Place:
        """Where a setting is written."""


def check_table(table: Table, collector: Collector) -> CheckConfig | None:
    """The job's checks; None without such a table."""
    own_tags(table, collector)
    model = table.model.check
    if model is None:
        return None
    schedule = check_times(table, "check", model.schedule, collector)
    after = not schedule if model.after_backup is None else model.after_backup
    if not after and not schedule:
        never(table, "check", "then nothing ever checks", "Sun 04:00", collector)
    return CheckConfig(after_backup=after, schedule=schedule, read_data=model.read_data)


def retention_table(table: Table, collector: Collector) -> RetentionConfig | None:
    """The job's retention; None without such a table."""
    model = table.model.retention
    if model is None:
        return None
    if not any(getattr(model, field) for field in KEEP):
        collector.mistake(
            table.at("retention"), "it does not say what to keep",
            "write keep-daily = 14 (or keep-last, keep-weekly, keep-monthly, keep-within, …), or take"
            " the table away to keep everything",
        )  # fmt: skip
    check_tags(table, "retention", model.keep_tags, collector)
    schedule = check_times(table, "retention", model.schedule, collector)
    after = not schedule if model.after_backup is None else model.after_backup
    if not after and not schedule:
        never(table, "retention", "then nothing is ever removed", "Sun 05:00", collector)
    newest = model.keep_within
    if newest and newest < 3600:
        collector.mistake(
            table.at("retention", "keep-within"),
            f"{format_duration(newest)} is less than any backup takes", 'write "14d"',
        )  # fmt: skip
    return RetentionConfig(
        last=model.keep_last, hourly=model.keep_hourly, daily=model.keep_daily,
        weekly=model.keep_weekly, monthly=model.keep_monthly, yearly=model.keep_yearly,
        within_seconds=model.keep_within, tags=tuple(model.keep_tags), prune=model.prune,
        after_backup=after, schedule=schedule, trust_clock=model.trust_clock,
    )  # fmt: skip


def check_tags(table: Table, key: str, tags: Sequence[str], collector: Collector) -> None:
    """A mistake for each tag by which nothing can be kept."""
    for i, tag in enumerate(tags):
        if not tag.strip() or "," in tag or tag.startswith(OWN_TAG):
            collector.mistake(
                table.at(key, "keep-tags", i), f"{tag!r} is no tag of yours",
                "write one tag an element",
            )  # fmt: skip


def own_tags(table: Table, collector: Collector) -> None:
    """capkeep knows a job's snapshots by a tag of its own, which nobody else may give."""
    for i, tag in enumerate(table.model.tags):
        if tag.startswith(OWN_TAG):
            collector.mistake(
                table.at("tags", i), f"tags that begin with {OWN_TAG} are capkeep's own",
                "choose another beginning",
            )  # fmt: skip


def never(table: Table, key: str, problem: str, example: str, collector: Collector) -> None:
    """A mistake: what the table says never happens."""
    hint = f'write schedule = ["{example}"], or take the table away'
    collector.mistake(table.at(key, "after-backup"), problem, hint)


def check_times(
    table: Table, key: str, written: Sequence[str], collector: Collector
) -> tuple[str, ...]:
    """The table's schedule; a mistake for each time that is none."""
    for i, text in enumerate(written):
        try:
            check_calendar(text)
        except ValueMistake as mistake:
            collector.mistake(table.at(key, "schedule", i), mistake.problem, mistake.hint)
    return tuple(written)
