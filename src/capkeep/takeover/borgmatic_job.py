"""A job of ours out of the options of borgmatic, which stand flat beside each other."""

import os
import re
from collections.abc import Iterable
from typing import Final

from capkeep.takeover import borgmatic_hooks, patterns
from capkeep.takeover.borgmatic_words import LEFT, NOTED, REPOSITORY_NOTED
from capkeep.takeover.documents import read_text
from capkeep.takeover.draft import Draft, redacted
from capkeep.takeover.durations import DAY, borg_span, calendar_for, frequency
from capkeep.takeover.limits import rate
from capkeep.takeover.model import Kind
from capkeep.takeover.nodes import Node, Section, keyed, not_all
from capkeep.takeover.repositories import Known, add_repository, command_source, program_of
from capkeep.values import SecretSource

COUNTS: Final = ("hourly", "daily", "weekly", "monthly", "yearly")
OTHER_COUNTS: Final = ("secondly", "minutely", "13weekly", "3monthly")
WILD: Final = frozenset("*?[")
_PLACEHOLDER: Final = re.compile(
    r"\{(hostname|fqdn|reverse-fqdn|user|now|utcnow|pid|borgversion)[^}]*\}"
)


class BorgmaticJob:
    """Makes the tables of one file."""

    def __init__(self, draft: Draft, section: Section, path: str) -> None:
        self._draft = draft
        self._section = section
        name = os.path.splitext(os.path.basename(path))[0]
        name = "system" if name in ("config", "borgmatic") else name
        self._job = draft.table("jobs", draft.free_name("jobs", name))
        section.table = self._job
        self._folder = section.text("working_directory")

    def read(self) -> None:
        """All of the file."""
        section, job = self._section, self._job
        self._repositories()
        self._sources()
        self._draft.set(job, "one-file-system", section.flag("one_file_system") or None)
        self._draft.set(job, "host", section.text("archive_hostname") or None)
        self._limits()
        skipped = set()
        for text, node in section.texts("skip_actions"):
            skipped.add(text)
            if text not in ("check", "prune", "compact"):
                said = f"{text} is not left out here"
                section.say(Kind.LEFT, "skip_actions", said, node=node)
        self._checks(skipped=bool({"check"} & skipped))
        self._retention(skipped=bool({"prune"} & skipped))
        borgmatic_hooks.commands(section)
        borgmatic_hooks.databases(self._draft, section, job)
        borgmatic_hooks.monitoring(self._draft, section, job)
        section.rest(LEFT, NOTED)
        if not self._draft.get(job, "include"):
            section.say(
                Kind.BY_HAND, "", "nothing says what is backed up", 'write include = ["/etc"]'
            )

    # -- repositories

    def _repositories(self) -> None:
        section = self._section
        node, password = section.take("repositories"), self._password()
        ssh, port = section.take("ssh_command"), section.text("local_path")
        there = section.text("remote_path") or ""
        found = []
        for item in node.items() if node else ():
            inner = Section(item.table(), "repositories", self._draft, self._job, section.expander)
            place = inner.take("path") if item.entries() else item
            location = section.text_of(place, "repositories") if place else ""
            label = inner.text("label") if item.entries() else ""
            location = self._location(location, item)
            if not location:
                continue
            known = Known(
                "borg", location, item, "repositories", password, {}, label, ssh, "ssh_command",
                there,
            )  # fmt: skip
            table = add_repository(self._draft, known)
            found.append(table[1])
            if item.entries():
                inner.table = table
                inner.rest({}, REPOSITORY_NOTED)
        self._draft.set(self._job, "repositories", tuple(dict.fromkeys(found)))
        if not found:
            section.say(
                Kind.BY_HAND, "repositories", "names no repository that can be carried over"
            )
        program = program_of(port)
        if port and (program or "") != "/usr/bin/borg":
            said = f"borg is {port} there: name its program"
            section.say(
                Kind.BY_HAND, "local_path", said, f'[engines.borg] program = "{program or port}"'
            )

    def _location(self, location: str, item: Node) -> str:
        """With what borg puts in for a place where it is known; "" with a remark if it is not."""
        filled = location.replace("{hostname}", os.uname().nodename).replace("{user}", "root")
        if _PLACEHOLDER.search(filled):
            self._section.say(
                Kind.LEFT, "repositories", f"{redacted(location)}: borg's placeholders", node=item
            )
            return ""
        return os.path.expanduser(filled) if filled.startswith("~") else filled

    def _password(self) -> SecretSource | None:
        section = self._section
        phrase, command = (
            section.take("encryption_passphrase"),
            section.take("encryption_passcommand"),
        )
        if command:
            text = section.text_of(command, "encryption_passcommand")
            name = f"{self._job[1]}-passphrase"
            source, problem = command_source(self._draft, name, text) if text else (None, "")
            if problem:
                section.say(Kind.LEFT, "encryption_passcommand", problem, node=command)
            return source
        return borgmatic_hooks.secret(
            self._draft, section, phrase, "encryption_passphrase", f"{self._job[1]}-passphrase"
        )

    # -- what is backed up

    def _absolute(self, path: str) -> str:
        path = os.path.expanduser(path) if path.startswith("~") else path
        path = os.path.join(self._folder, path)
        return os.path.normpath(path) if path.startswith("/") else ""

    def _sources(self) -> None:
        section = self._section
        include: list[str] = []
        exclude: list[str] = []
        for text, node in section.texts("source_directories"):
            self._include(text, node, "source_directories", include)
        protected = False
        lines = [(t, n, "patterns") for t, n in section.texts("patterns")]
        lines += [(t, n, "patterns_from") for t, n in self._listed("patterns_from")]
        style = "sh"  # of patterns, where nothing else is said (borg help patterns)
        for text, node, key in lines:
            kind, _, rest = text.strip().partition(" ")
            if kind in ("R", "r"):
                self._include(rest.strip(), node, key, include)
            elif kind in ("P", "p"):
                style = rest.strip()
            elif kind == "+":
                protected = True
                said = f"{text!r}: what is excluded is excluded; more is kept than before"
                section.say(Kind.LEFT, key, said, node=node)
            elif kind in ("-", "!") and protected:
                section.say(Kind.LEFT, key, f"{text!r} stands behind an exception", node=node)
            elif kind in ("-", "!"):
                self._exclude(rest.strip(), node, key, exclude, style)
            else:
                section.say(Kind.LEFT, key, f"{text!r} is not understood", node=node)
        for text, node in section.texts("exclude_patterns"):
            self._exclude(os.path.expanduser(text) if text[:1] == "~" else text, node,
                          "exclude_patterns", exclude, "fm")  # fmt: skip
        for text, node in self._listed("exclude_from"):
            self._exclude(text, node, "exclude_from", exclude, "fm")
        self._draft.set(self._job, "include", tuple(dict.fromkeys(include)))
        self._draft.set(self._job, "exclude", tuple(dict.fromkeys(exclude)))

    def _listed(self, key: str) -> Iterable[tuple[str, Node]]:
        """The lines of the files that a key names; comments and empty ones left out."""
        for text, node in self._section.texts(key):
            path = self._absolute(text)
            try:
                lines = read_text(path).splitlines() if path else []
            except OSError as error:
                said = f"{path} cannot be read: {error.strerror}"
                self._section.say(Kind.LEFT, key, said, node=node)
                continue
            for number, line in enumerate(lines, 1):
                if line.strip() and not line.lstrip().startswith("#"):
                    yield line.strip(), Node(line, path, number)

    def _include(self, text: str, node: Node, key: str, include: list[str]) -> None:
        path = self._absolute(text)
        if not path:
            said = f"{text!r} begins where the program was started, which is not known"
            self._section.say(Kind.LEFT, key, said, "write the absolute path", node=node)
        elif WILD & set(path):
            said = f"{text!r}: includes are plain paths"
            hint = "name a directory above it, and in exclude what is not wanted"
            self._section.say(Kind.LEFT, key, said, hint, node=node)
        else:
            include.append(path)

    def _exclude(self, text: str, node: Node, key: str, exclude: list[str], style: str) -> None:
        try:
            exclude += patterns.from_borg(text, style)
        except patterns.Untranslatable as why:
            said = f"{text!r} excludes nothing here, so more is kept: {why}"
            self._section.say(Kind.LEFT, key, said, "write it as restic would", node=node)

    def _limits(self) -> None:
        section, job, draft = self._section, self._job, self._draft
        rate(draft, section, "upload_rate_limit", job, "upload-limit")
        draft.set(job, "retries", min(section.number("retries") or 0, 20) or None)
        wait = section.number("retry_wait")
        draft.set(job, "retry-wait", f"{wait}s" if wait else None)
        lock = section.number("lock_wait")
        draft.set(job, "lock-wait", f"{lock}s" if lock else None)

    # -- checks and retention

    def _checks(self, *, skipped: bool) -> None:
        section, table = self._section, (*self._job, "check")
        node = section.take("checks")
        items = node.items() if node else ()
        names = [(i.entries().get("name", i).text() or "").lower() for i in items]
        only = section.take("check_repositories")
        if only:
            said = "every repository of the job is checked"
            section.say(Kind.LEFT, "check_repositories", said, node=only)
        if skipped or "disabled" in names:
            return
        spans: dict[str, int] = {}
        for item, name in zip(items, names, strict=True):
            self._one_check(
                Section(item.table(), f"checks.{name}", self._draft, table), name, spans
            )
        if not items:  # borgmatic's own default
            spans = {"repository": 30 * DAY, "archives": 30 * DAY}
        if not spans:
            return
        least = min(spans.values())
        times = calendar_for(least)
        if times:
            self._draft.set(table, "schedule", (times,))
            said = "borgmatic counts from the last check; these are times of about the same number"
            section.say(Kind.NOTE, "checks", said, node=node, table=table)
        else:
            self._draft.set(table, "after-backup", True)
        if "data" in spans:
            days = spans["data"] // DAY
            part = f"rotate {days}d" if spans["data"] > least and days else "all"
            self._draft.set(table, "read-data", part)

    def _one_check(self, check: Section, name: str, spans: dict[str, int]) -> None:
        check.take("name")
        if name not in ("repository", "archives", "data"):
            hint = (
                "restore and compare by hand: capkeep restore"
                if name in ("extract", "spot")
                else ""
            )
            check.say(Kind.LEFT, "", f"there is no check {name!r}", hint)
            return
        node = check.take("frequency")
        seconds = frequency(node.text() or "") if node else 0
        if seconds is None:
            check.say(Kind.LEFT, "frequency", "is not understood", node=node)
            seconds = 0
        spans[name] = seconds
        said = "checks run at the times of their schedule"
        check.rest(keyed(("only_run_on", "max_duration"), said), {})

    def _retention(self, *, skipped: bool) -> None:
        section, table = self._section, (*self._job, "retention")
        section.table = table
        kept: dict[str, int | str] = {}
        missing = False
        for name in COUNTS:
            number = section.kept(f"keep_{name}")
            missing = missing or number is None
            if number:
                kept[f"keep-{name}"] = number
        for name in OTHER_COUNTS:
            node = section.node.entries().get(f"keep_{name}")
            if section.kept(f"keep_{name}") != 0:
                said = "there are no such rules here"
                hint = "keep-last or keep-within keep as much"
                section.say(Kind.LEFT, f"keep_{name}", said, hint, node=node)
                missing = True
        node = section.take("keep_within")
        if node:
            span = borg_span(section.text_of(node, "keep_within"))
            if span:
                kept["keep-within"] = span
            else:
                section.say(Kind.LEFT, "keep_within", "is not a time such as 30d", node=node)
                missing = True
        if kept and skipped:
            section.say(Kind.NOTE, "keep_…", "prune is among skip_actions: nothing is removed")
        elif missing:
            not_all(section)
        for key, value in kept.items() if not skipped and not missing else ():
            self._draft.set(table, key, value)
        section.table = self._job
