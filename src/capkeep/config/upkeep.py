"""A job's tables `check` and `retention`, checked."""

from typing import Final, Protocol

from capkeep.config import syntax
from capkeep.config.mistakes import Collector, Place
from capkeep.config.model import CheckConfig, RetentionConfig
from capkeep.config.schedules import check_calendar
from capkeep.values import Keep, ValueMistake, format_duration

HOUR: Final = 3600  # seconds
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
    never = ("then nothing ever checks", "Sun 04:00")
    after, schedule = occasions(table, "check", model, never, collector)
    return CheckConfig(after_backup=after, schedule=schedule, read_data=model.read_data)


def retention_table(table: Table, collector: Collector) -> RetentionConfig | None:
    """The job's retention; None without such a table."""
    model = table.model.retention
    if model is None:
        return None
    keep = rules(table, "retention", model, collector)
    if not keep.chooses():
        collector.mistake(
            table.at("retention"), "it does not say what to keep",
            "write keep-daily = 14 (or keep-last, keep-weekly, keep-monthly, keep-within, …), or take"
            " the table away to keep everything",
        )  # fmt: skip
    never = ("then nothing is ever removed", "Sun 05:00")
    after, schedule = occasions(table, "retention", model, never, collector)
    return RetentionConfig(
        keep=keep, prune=model.prune, after_backup=after, schedule=schedule,
        trust_clock=model.trust_clock,
    )  # fmt: skip


def rules(table: Table, key: str, model: syntax.Keep, collector: Collector) -> Keep:
    """The table's keep-…; a mistake for each by which nothing can be kept."""
    for i, tag in enumerate(model.keep_tags):
        if not tag.strip() or "," in tag or tag.startswith(OWN_TAG):
            collector.mistake(
                table.at(key, "keep-tags", i), f"{tag!r} is no tag of yours",
                "write one tag an element",
            )  # fmt: skip
    if model.keep_within and model.keep_within < HOUR:
        collector.mistake(
            table.at(key, "keep-within"),
            f"{format_duration(model.keep_within)} is less than any backup takes", 'write "14d"',
        )  # fmt: skip
    return Keep(
        last=model.keep_last, hourly=model.keep_hourly, daily=model.keep_daily,
        weekly=model.keep_weekly, monthly=model.keep_monthly, yearly=model.keep_yearly,
        within_seconds=model.keep_within, tags=tuple(model.keep_tags),
    )  # fmt: skip


def own_tags(table: Table, collector: Collector) -> None:
    """capkeep knows a job's snapshots by a tag of its own, which nobody else may give."""
    for i, tag in enumerate(table.model.tags):
        if tag.startswith(OWN_TAG):
            collector.mistake(
                table.at("tags", i), f"tags that begin with {OWN_TAG} are capkeep's own",
                "choose another beginning",
            )  # fmt: skip


class Timed(Protocol):
    """What a table says of when it happens."""

    @property
    def after_backup(self) -> bool | None:
        """After each complete backup; None where it is not said."""

    @property
    def schedule(self) -> list[str]:
        """At times of its own."""


def occasions(
    table: Table, key: str, model: Timed, never: tuple[str, str], collector: Collector
) -> tuple[bool, tuple[str, ...]]:
    """Whether after each backup, and the times. `never` has the words and a time for who says neither."""
    for i, text in enumerate(model.schedule):
        try:
            check_calendar(text)
        except ValueMistake as mistake:
            collector.mistake(table.at(key, "schedule", i), mistake.problem, mistake.hint)
    schedule = tuple(model.schedule)
    after = not schedule if model.after_backup is None else model.after_backup
    if not after and not schedule:
        problem, example = never
        hint = f'write schedule = ["{example}"], or take the table away'
        collector.mistake(table.at(key, "after-backup"), problem, hint)
    return after, schedule
