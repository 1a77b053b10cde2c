"""Keys of resticprofile and options of restic: what is done with those that are no settings of ours."""

from collections.abc import Mapping
from typing import Final

from capkeep import calendars
from capkeep.takeover.draft import Draft, redacted
from capkeep.takeover.durations import go_duration
from capkeep.takeover.model import Kind, Path
from capkeep.takeover.nodes import Node, Section, keyed
from capkeep.values import ValueMistake

HOOKS: Final = ("run-before", "run-after", "run-after-fail", "run-finally")
# Why a key of a section is not carried over (and, behind " | ", what to do instead).
LEFT: Final[Mapping[str, str]] = {
    "exclude-caches": "capkeep does not look for CACHEDIR.TAG | name the directories in exclude",
    "exclude-if-present": "capkeep does not look for marker files | name the directories in exclude",
    **keyed(("iexclude", "iexclude-file"),
            "patterns here know capitals | write them in exclude, as [Cc]ache"),
    "exclude-larger-than": "files are not left out by their size",
    "exclude-cloud-files": "is for Windows",
    **keyed(
        ("stdin", "stdin-filename", "stdin-command", "stdin-from-command"),
        'a command\'s output is a dump here | write [dumps.NAME] kind = "command", and name it in dumps',
    ),
    **keyed(("files-from", "files-from-raw"),
            "lists of patterns are not read | list plain paths in include-from"),
    "no-error-on-warning":
        "a run that missed a file is partial | name in may-miss what need not be read",
    **keyed(
        ("time", "parent", "force", "with-atime", "ignore-inode", "ignore-ctime", "group-by",
         "read-concurrency", "skip-if-unchanged", "use-fs-snapshot", "no-scan", "source-relative",
         "compression", "pack-size", "key-hint", "no-lock", "insecure-tls", "tls-client-cert",
         "insecure-no-password", "http-user-agent", "no-extra-verify", "stuck-request-timeout"),
        "capkeep does not hand this to restic",
    ),
    "check-unused": "capkeep does not hand this to restic",
    "check-before": "a check goes with each backup or has a schedule of its own",
    "before-backup": "snapshots are removed after a backup, or at times of their own",
    "copy": "nothing is copied between repositories | name both in the job's repositories",
    "use": "mixins are not read | write their keys in the profile",
    "prometheus-push": "nothing is pushed | [metrics] directory, and node_exporter reads it",
    "prometheus-push-job": "nothing is pushed",
    "prometheus-push-format": "nothing is pushed",
    "prometheus-labels": "metrics have labels of capkeep's own",
    "stream-error": "the engine's output is in the log of each run",
    "init": "is for new repositories",
    "other-flags": "flags that restic alone knows",
}  # fmt: skip
NOTED: Final[Mapping[str, str]] = {
    "description": "is for people alone",
    **keyed(("initialize",), "`capkeep init` makes repositories that are not there yet"),
    **keyed(("verbose", "quiet", "json", "extended-status", "status-file"),
            "capkeep records every run by itself: capkeep status --json"),
    **keyed(("cache-dir", "no-cache", "cleanup-cache", "with-cache"), "the cache is capkeep's own"),
    **keyed(("lock", "force-inactive-lock"), "a job runs once at a time, and dead locks are removed"),
    **keyed(("schedule-permission", "schedule-log", "schedule-lock-mode", "schedule-env-capture",
             "schedule-after-network-online", "schedule-hide-window", "schedule-run-level",
             "schedule-start-when-available"),
            "runs are started for capkeep's own user, logged, and made up for"),
    **keyed(("compact", "dry-run", "path"), "snapshots of a job are known by its tag capkeep:JOB"),
    **keyed(("snapshots", "ls", "find", "dump", "mount", "restore", "stats", "diff", "cat", "list",
             "tag", "unlock", "rewrite", "recover", "repair", "key", "cache", "rebuild-index",
             "repair-index", "repair-snapshots", "migrate", "generate", "version", "self-update"),
            "options of a command that is called by hand"),
    "prune": "what no snapshot needs goes with retention; prune has no times of its own",
}  # fmt: skip


def hooks(section: Section) -> None:
    """Commands before and after: shown, not taken over."""
    for key in HOOKS:
        node = section.take(key)
        for item in node.items() if node else ():
            shown = redacted(item.text() or "…")
            said = f"the command is not run: {shown}"
            section.say(Kind.LEFT, key, said, "see whether the job still needs it", node=item)


def schedule(draft: Draft, section: Section, table: Path) -> tuple[str, ...]:
    """Times of a section, set in a table of ours."""
    node = section.take("schedule")
    if node and node.entries():  # schedule = { at = …, … }
        inner = Section(node, "schedule", draft, section.table)
        section.put("schedule", inner.take("at") or Node(None, node.file, node.line))
        for name in inner.left():
            value = inner.take(name)
            if value:
                section.put(f"schedule-{name}", value)
        node = section.take("schedule")
    if node:
        section.put("schedule", node)
    found = []
    for text, item in section.texts("schedule"):
        try:
            calendars.parse(text)
            found.append(text)
        except ValueMistake as mistake:
            section.say(Kind.LEFT, "schedule", mistake.problem, mistake.hint, node=item)
    draft.set(table, "schedule", tuple(found))
    wait, priority = section.text("schedule-lock-wait"), section.text("schedule-priority")
    if len(table) == len(("jobs", "NAME")):  # a job's own; checks and retention take it from there
        draft.set(table, "lock-wait", go_duration(wait) or None)
        draft.set(table, "nice", 15 if priority == "background" else None)
    return tuple(found)
