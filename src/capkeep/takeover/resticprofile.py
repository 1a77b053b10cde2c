"""resticprofile's configuration, versions 1 and 2: profiles, inheritance, includes, groups.

Go's templates are filled in before resticprofile reads the file. The values that stand for something
this host knows are filled in here too; what makes text out of conditions and loops is not read.
"""

import glob
import os
import re
import shlex
from collections.abc import Mapping
from typing import Final

from capkeep.takeover.documents import parse, read_text
from capkeep.takeover.draft import Draft
from capkeep.takeover.model import Kind, Path
from capkeep.takeover.nodes import Node, Section, broken, keyed
from capkeep.takeover.repositories import program_of
from capkeep.takeover.restic_job import JobReader

NICE: Final = {
    "idle": 19, "background": 15, "low": 10, "normal": 0, "high": 0, "highest": 0,
}  # fmt: skip
IO_CLASSES: Final = {2: "best-effort", 3: "idle"}
MAX_INCLUDES: Final = 64
MAX_PARENTS: Final = 16
_TEMPLATE: Final = re.compile(r"\{\{-?((?:(?!\{\{).)*?)-?\}\}", re.DOTALL)
_CONTROL: Final = re.compile(r"\s*(if|else|end|range|with|define|template|block|break|continue)\b")
_MARK: Final = re.compile("\ue000(\\d+)\ue001")
GLOBAL_LEFT: Final = {
    **keyed(("min-memory",), "capkeep does not look at free memory | limits.memory bounds what a room takes"),
    **keyed(("prevent-sleep",), "capkeep does not keep the machine awake"),
    **keyed(("systemd-unit-template", "systemd-timer-template"), "units are capkeep's own"),
    **keyed(("ca-certificates", "send-timeout"), "are for sending | [notify.NAME] ca-file"),
    **keyed(("log", "command-output"), "logs are kept for each run | capkeep log"),
}  # fmt: skip
GLOBAL_NOTED: Final = {
    **keyed(("default-command", "initialize", "legacy-arguments", "restic-arguments-filter", "shell",
             "group-continue-on-error", "group-next-on-error", "scheduler", "schedule-defaults",
             "restic-stale-lock-age", "restic-lock-retry-after"),
            "is about the program itself"),
}  # fmt: skip


class Templates:
    """Puts marks in place of `{{ … }}`, and values in place of marks."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._found: list[str] = []

    def hide(self, text: str, path: str) -> str:
        """A text that can be parsed. Raises ConfigError for templates that are programs."""

        def mark(match: re.Match[str]) -> str:
            if _CONTROL.match(match[1]):
                line = text.count("\n", 0, match.start()) + 1
                said = (
                    f"the template {{{{{match[1]}}}}} is a program of Go's, which is not run here"
                )
                hint = "write what it makes into a copy of the file, and import that"
                raise broken(path, line, said, hint)
            self._found.append(match[1].strip())
            return f"\ue000{len(self._found) - 1}\ue001"

        return _TEMPLATE.sub(mark, text)

    def fill(self, text: str, profile: str) -> tuple[str, str]:
        """A text with what this host knows; or why it cannot be known."""
        known = {
            ".Profile.Name": profile,
            ".Hostname": os.uname().nodename,
            ".ConfigDir": self._folder,
            ".OS": "linux",
        }
        problem = ""

        def value(match: re.Match[str]) -> str:
            nonlocal problem
            name = self._found[int(match[1])]
            if name not in known:
                problem = f"{{{{ {name} }}}} is not known here"
            return known.get(name, "")

        filled = _MARK.sub(value, text)
        return ("", problem) if problem else (filled, "")


def read_resticprofile(path: str, draft: Draft) -> None:
    """Every profile that backs something up, as a job. Raises ConfigError, OSError."""
    folder = os.path.dirname(os.path.abspath(path))
    templates = Templates(folder)
    root = parse(templates.hide(read_text(path), path), path)
    root = _included(root, folder, templates, draft)
    entries = dict(root.entries())
    version = entries.pop("version", None)
    second = (version.text() if version else "1") in ("2", "2.0")
    profiles = entries.pop("profiles", None) if second else None
    common = Section(entries.pop("global", Node({}, path, 0)), "global", draft, ())
    groups = entries.pop("groups", None)
    for key in ("includes", "$schema"):
        entries.pop(key, None)
    if profiles is None and second:
        raise broken(path, 0, "has no profiles", "is it a configuration of resticprofile?")
    if profiles:
        for key, node in entries.items():
            if key != "mixins":
                draft.say(Kind.LEFT, node, key, "is not understood")
    found = profiles.entries() if profiles else entries
    _Profiles(draft, folder, templates, found, second=second).read(common)
    for name, node in groups.entries().items() if groups else ():
        said = "there are no groups of jobs"
        members = node.entries().get("profiles", node)
        names = " ".join(
            shlex.quote(item.text() or "") for item in members.items() if not item.entries()
        )
        if "schedules" in node.entries() or "schedule" in node.entries():
            hint = f"give these a schedule each: {names}"
            draft.say(Kind.LEFT, node, f"groups.{name}", said, hint)
        else:
            draft.say(Kind.NOTE, node, f"groups.{name}", said, f"capkeep run {names}")


def _included(root: Node, folder: str, templates: Templates, draft: Draft) -> Node:
    """The configuration with what its `includes` add; later files go before earlier ones."""
    node = root.entries().get("includes")
    for item in node.items() if node else ():
        pattern = os.path.join(folder, item.text() or "")
        files = sorted(glob.glob(pattern)) or [pattern]
        for file in files[:MAX_INCLUDES]:
            try:
                text = templates.hide(read_text(file), file)
            except OSError as error:
                said = f"{file} cannot be read: {error.strerror}"
                draft.say(Kind.LEFT, item, "includes", said)
                continue
            root = merged(root, parse(text, file), lists=False)
    return root


def merged(parent: Node, child: Node, *, lists: bool) -> Node:
    """A tree over another one; `lists`: their elements by their number, as version 1 does."""
    if isinstance(parent.value, Mapping) and isinstance(child.value, Mapping):
        found = dict(parent.value)
        # What is put before or behind a list comes when the list itself is there.
        for key, node in sorted(child.value.items(), key=lambda pair: any(_listed(pair[0])[1:])):
            name, before, after = _listed(key)
            old = found.get(name)
            if (before or after) and old:
                parts = (*node.items(), *old.items()) if before else (*old.items(), *node.items())
                found[name] = node._replace(value=parts)
            else:
                found[name] = merged(old, node, lists=lists) if old else node
        return child._replace(value=found)
    if lists and isinstance(parent.value, tuple) and isinstance(child.value, tuple):
        return child._replace(value=child.value + parent.value[len(child.value) :])
    return child


def _listed(key: str) -> tuple[str, bool, bool]:
    """A key without what says that its list goes before or behind the parent's."""
    if key.startswith("...") or key.endswith("__PREPEND"):
        return key.removeprefix("...").removesuffix("__PREPEND"), True, False
    if key.endswith(("...", "__APPEND")):
        return key.removesuffix("...").removesuffix("__APPEND"), False, True
    return key, False, False


class _Profiles:
    def __init__(
        self, draft: Draft, folder: str, templates: Templates, found: Mapping[str, Node], *,
        second: bool,
    ) -> None:  # fmt: skip
        self._draft = draft
        self._reader = JobReader(draft, folder)
        self._templates = templates
        self._found = found
        self._second = second
        self._jobs: list[Path] = []

    def read(self, common: Section) -> None:
        """All profiles, then what is said for all of them."""
        parents = {
            n.entries()["inherit"].text() for n in self._found.values() if "inherit" in n.entries()
        }
        for name, node in self._found.items():
            self._profile(name, node, is_parent=name in parents)
        self._common(common)

    def _profile(self, name: str, node: Node, *, is_parent: bool) -> None:
        whole = self._whole(name, node)
        backup = whole.entries().get("backup")
        if is_parent and "backup" not in node.entries():
            return  # what others build upon
        profile = Section(
            whole, name, self._draft, (), lambda text: self._templates.fill(text, name)
        )
        profile.take("inherit")
        if not profile.left():
            return
        repository = self._reader.repository(profile, name)
        if repository is None:
            said = "the profile has no repository: it is left out"
            profile.say(Kind.LEFT, "", said)
            return
        if backup is None:
            said = "the profile backs nothing up: no job is made of it"
            profile.say(Kind.NOTE, "", said, table=repository)
            return
        self._jobs.append(self._reader.job(profile, name, repository))

    def _whole(self, name: str, node: Node) -> Node:
        """A profile with all that it inherits."""
        chain = [node]
        while (parent := chain[-1].entries().get("inherit")) is not None:
            above = self._found.get(parent.text() or "")
            if above is None or len(chain) > MAX_PARENTS:
                said = f"there is no profile {parent.text()}" if above is None else "never ends"
                self._draft.say(Kind.LEFT, parent, f"{name}.inherit", said)
                break
            chain.append(above)
        whole = merged(Node({}, node.file, node.line), chain.pop(), lists=False)
        while chain:
            whole = merged(whole, chain.pop(), lists=not self._second)
        return self._after_backup(whole) if self._second else whole

    def _after_backup(self, whole: Node) -> Node:
        """Since version 2 rules of retention are carried out after each backup, unless it is said."""
        retention = whole.entries().get("retention")
        if retention is None or not any(k.startswith("keep-") for k in retention.entries()):
            return whole
        said = Node(True, retention.file, retention.line)
        before = retention.entries().get("before-backup")
        if before is not None and before.value:
            return whole
        with_it = retention._replace(value={"after-backup": said, **retention.entries()})
        return whole._replace(value={**whole.entries(), "retention": with_it})

    def _common(self, common: Section) -> None:
        """What is said for all: priorities, and the engine's program."""
        nice = self._nice(common)
        with_io = common.flag("ionice")
        io_class, level = common.number("ionice-class"), common.number("ionice-level")
        for job in self._jobs:
            if nice and not self._draft.get(job, "nice"):
                self._draft.set(job, "nice", nice)
            if with_io:
                self._draft.set(
                    job, "io-class", IO_CLASSES.get(2 if io_class is None else io_class)
                )
                if io_class in (None, 2) and level is not None and level < 8:
                    self._draft.set(job, "io-priority", level)
        binary = common.text("restic-binary")
        if binary:
            program = program_of(os.path.expanduser(binary))
            self._draft.set(("engines", "restic"), "program", program or binary)
        common.rest(GLOBAL_LEFT, GLOBAL_NOTED)

    def _nice(self, common: Section) -> int:
        node, priority = common.take("nice"), common.text("priority").lower()
        if node and isinstance(node.value, bool):
            return 10 if node.value else 0
        if node and isinstance(node.value, int):
            return min(max(node.value, 0), 19)
        if priority.lstrip("-").isdigit():
            return min(max(int(priority), 0), 19)
        return NICE.get(priority, 0)
