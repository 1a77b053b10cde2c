"""A job of ours out of the options that restic is called with, wherever they were written.

resticprofile's keys are restic's options with a section for each command; what stands in a unit or in
the environment is brought into the same form by those who read these.
"""

import os
from typing import Final

from capkeep.takeover import notices
from capkeep.takeover.documents import read_text
from capkeep.takeover.draft import Draft, slug
from capkeep.takeover.durations import go_duration
from capkeep.takeover.limits import rate
from capkeep.takeover.model import Kind, Path
from capkeep.takeover.nodes import Section
from capkeep.takeover.restic_repository import RepositoryReader
from capkeep.takeover.restic_upkeep import upkeep
from capkeep.takeover.restic_words import LEFT, NOTED, hooks, schedule
from capkeep.values import ValueMistake, check_exclude

SENDS: Final = ("send-before", "send-after", "send-after-fail", "send-finally")
WILD: Final = frozenset("*?[")


class JobReader:
    """Makes tables out of one profile after another."""

    def __init__(self, draft: Draft, folder: str) -> None:
        self._draft = draft
        self._places = RepositoryReader(draft, folder)

    def repository(self, profile: Section, name: str) -> Path | None:
        """The profile's repository; None if it names none."""
        return self._places.read(profile, name)

    def job(self, profile: Section, name: str, repository: Path) -> Path:
        """The profile's job, with its tables."""
        job = self._draft.table("jobs", self._draft.free_name("jobs", name))
        profile.table = job
        self._draft.set(job, "repositories", (repository[1],))
        backup = profile.section("backup", job)
        self._sources(backup, profile, job)
        self._excludes(backup, job)
        self._draft.set(job, "one-file-system", backup.flag("one-file-system") or None)
        self._tags_and_host(backup, profile, job)
        scheduled = schedule(self._draft, backup, job)
        if scheduled:
            self._power(backup, job, repository)
        self._limits(backup, profile, job)
        upkeep(self._draft, profile, backup, job)
        self._metrics(profile)
        for section in (backup, profile):
            hooks(section)
            notices.sends(self._draft, section, SENDS, job[1])
            section.rest(LEFT, NOTED)
        return job

    def _sources(self, backup: Section, profile: Section, job: Path) -> None:
        base = backup.text("source-base") or profile.text("base-dir")
        profile.take("base-dir")
        include = []
        for text, node in backup.texts("source"):
            path = os.path.expanduser(text) if text.startswith("~") else text
            if path != text:
                backup.say(Kind.NOTE, "source", f"{text} is {path} for whoever imports", node=node)
            path = os.path.join(base, path)
            if not path.startswith("/"):
                said = f"{text!r} begins where the program was started, which is not known"
                backup.say(Kind.LEFT, "source", said, "write the absolute path", node=node)
            elif WILD & set(path) or "$" in path:
                said = f"{text!r}: includes are plain paths"
                hint = "write what it stands for, or a directory above it"
                backup.say(Kind.LEFT, "source", said, hint, node=node)
            else:
                include.append(os.path.normpath(path))
        self._draft.set(job, "include", tuple(dict.fromkeys(include)))
        lists = [self._places.absolute(text) for text, _ in backup.texts("files-from-verbatim")]
        self._draft.set(job, "include-from", tuple(lists))
        if not include and not lists:
            backup.say(
                Kind.BY_HAND, "", "nothing says what is backed up", 'write include = ["/etc"]'
            )

    def _excludes(self, backup: Section, job: Path) -> None:
        patterns = []
        for text, node in backup.texts("exclude"):
            try:
                check_exclude(text)
                patterns.append(text)
            except ValueMistake as mistake:
                backup.say(Kind.LEFT, "exclude", mistake.problem, mistake.hint, node=node)
        self._draft.set(job, "exclude", tuple(dict.fromkeys(patterns)))
        lists = []
        for text, node in backup.texts("exclude-file"):
            path = self._places.absolute(text)
            try:
                holds = read_text(path)
            except OSError as error:
                said = f"{path} cannot be read: {error.strerror}"
                backup.say(Kind.LEFT, "exclude-file", said, node=node)
                continue
            lists.append(path)
            if "$" in holds:
                said = f"restic puts variables into {path}, capkeep does not"
                backup.say(Kind.LEFT, "exclude-file", said, "write what they stand for", node=node)
        self._draft.set(job, "exclude-from", tuple(lists))

    def _tags_and_host(self, backup: Section, profile: Section, job: Path) -> None:
        found = backup.texts("tag") or profile.texts("tag")
        tags = [tag.strip() for text, _ in found for tag in text.split(",") if tag.strip()]
        self._draft.set(job, "tags", tuple(dict.fromkeys(tags)))
        profile.take("tag")
        common = profile.take("host")
        node = backup.take("host") or common
        if node and not isinstance(node.value, bool):
            self._draft.set(job, "host", backup.text_of(node, "host") or None)

    def _power(self, backup: Section, job: Path, repository: Path) -> None:
        """There runs go on whatever the machine lives on, unless it is said; here they do not."""
        if not backup.flag("schedule-ignore-on-battery"):
            self._draft.set(job, "on-battery", True)
        node = backup.take("schedule-ignore-on-battery-less-than")
        if node:
            said = "runs are left out on battery, or never"
            backup.say(Kind.LEFT, "schedule-ignore-on-battery-less-than", said, node=node)
        if not str(self._draft.get(repository, "location")).startswith("/"):
            self._draft.set(job, "on-metered", True)

    def _limits(self, backup: Section, profile: Section, job: Path) -> None:
        for key in ("limit-upload", "limit-download"):
            for section in (profile, backup):
                rate(self._draft, section, key, job, f"{key.removeprefix('limit-')}-limit")
        waits = [go_duration(section.text("retry-lock")) for section in (backup, profile)]
        self._draft.set(job, "lock-wait", next((w for w in waits if w), None))

    def _metrics(self, profile: Section) -> None:
        path = profile.text("prometheus-save-to-file")
        if path.startswith("/"):
            self._draft.set(("metrics",), "directory", os.path.dirname(path))
            said = "metrics have names of capkeep's own, in capkeep.prom"
            profile.say(Kind.NOTE, "prometheus-save-to-file", said, table=("metrics",))
        elif path:
            said = f"{path!r} begins where the program was started, which is not known"
            hint = "write [metrics] directory = …"
            profile.say(Kind.LEFT, "prometheus-save-to-file", said, hint)


def named(location: str) -> str:
    """A name for a job of which nothing but its repository is known."""
    return slug(os.path.basename(location.rstrip("/"))) or "system"
