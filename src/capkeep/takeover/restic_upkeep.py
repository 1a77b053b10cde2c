"""Checks and retention of a job out of resticprofile's sections, or of restic's own options."""

from typing import Final

from capkeep.takeover.draft import Draft
from capkeep.takeover.durations import restic_span
from capkeep.takeover.model import Kind, Path
from capkeep.takeover.nodes import Section, not_all
from capkeep.takeover.restic_words import LEFT, NOTED, hooks, schedule

COUNTS: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def upkeep(draft: Draft, profile: Section, backup: Section, job: Path) -> None:
    """The tables `check` and `retention` of a job."""
    _check(draft, profile, backup, job)
    table = (*job, "retention")
    pruned = profile.section("prune", table)
    prunes = bool(pruned.take("schedule"))
    pruned.rest(LEFT, NOTED, ignore="schedule")
    for name in ("retention", "forget"):
        section = profile.section(name, table)
        if draft.has(table):  # what is done after each backup goes before what has times
            for key in section.left():
                if key.startswith(("keep-", "schedule")):
                    section.say(Kind.LEFT, key, "the rules of `retention` are taken")
                    section.take(key)
        elif _keeps(draft, section, table):
            _when(draft, section, job, prunes=prunes)
        else:
            draft.drop(table)
        section.take("prune")
        for key in ("tag", "host", "group-by"):
            if key in section:
                section.say(Kind.NOTE, key, NOTED["path"])
                section.take(key)
        hooks(section)
        section.rest(LEFT, NOTED)


def _when(draft: Draft, section: Section, job: Path, *, prunes: bool) -> None:
    table = section.table
    before = section.flag("before-backup")
    after = section.flag("after-backup") or before
    times = schedule(draft, section, table)
    if not after and not times:
        said = "has rules, but nothing makes it run by itself: here neither"
        hint = f"write [{'.'.join(table)}] with them, and a schedule"
        section.say(Kind.NOTE, "", said, hint, table=job)
        draft.drop(table)
        return
    if before:
        section.say(Kind.NOTE, "before-backup", "snapshots are removed after a backup")
    if after and times:
        draft.set(table, "after-backup", True)
    draft.set(table, "prune", bool(section.flag("prune")) or prunes)
    said = "snapshots that are there already have no tag of capkeep's: its rules leave them alone"
    hint = "when they have served, remove them with the program that made them"
    section.say(Kind.NOTE, "", said, hint)


def _keeps(draft: Draft, section: Section, table: Path) -> bool:
    """Sets the rules; False if there are none, or not all of them can be."""
    found, missing = False, False
    for name in COUNTS:
        number = section.kept(f"keep-{name}")
        draft.set(table, f"keep-{name}", number or None)
        found, missing = found or bool(number), missing or number is None
    node = section.take("keep-within")
    if node and node.value:
        span = restic_span(section.text_of(node, "keep-within"))
        draft.set(table, "keep-within", span or None)
        found, missing = found or bool(span), missing or not span
        if not span:
            section.say(Kind.LEFT, "keep-within", "is not a time such as 30d", node=node)
    tags = [t.strip() for text, _ in section.texts("keep-tag") for t in text.split(",")]
    draft.set(table, "keep-tags", tuple(dict.fromkeys(t for t in tags if t)))
    for name in COUNTS[1:]:
        span_of_one = section.take(f"keep-within-{name}")
        if span_of_one:
            said = "each count has no span of its own here"
            hint = "write keep-within, or a count"
            section.say(Kind.LEFT, f"keep-within-{name}", said, hint, node=span_of_one)
            missing = True
    if missing:
        not_all(section)
        for key in section.left():  # when they would have been carried out
            if key.startswith("schedule") or key in ("after-backup", "before-backup"):
                section.take(key)
    return (found or bool(tags)) and not missing


def _check(draft: Draft, profile: Section, backup: Section, job: Path) -> None:
    table = (*job, "check")
    check = profile.section("check", table)
    times = schedule(draft, check, table)
    after = backup.flag("check-after")
    if after:
        draft.set(table, "after-backup", True)
    subset = check.text("read-data-subset")
    part = "all" if check.flag("read-data") else subset
    if "/" in part:
        share = part.partition("/")[2]
        said = f"a fixed part {part}: capkeep reads the next part each time"
        check.say(Kind.NOTE, "read-data-subset", said)
        part = f"rotate {share}w" if share.isdigit() and 0 < int(share) < 100 else ""
    if times or after:
        draft.set(table, "read-data", part or None)
    elif check.left() or part:
        said = "nothing makes it run by itself, so nothing is checked by itself here either"
        check.say(Kind.NOTE, "", said, f"write [jobs.{job[1]}.check], perhaps with a schedule")
    hooks(check)
    check.rest(LEFT, NOTED)
