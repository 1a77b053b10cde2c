"""The units of systemd that start restic: what they call it with, and when."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Final

from capkeep import calendars
from capkeep.takeover.documents import read_text
from capkeep.takeover.draft import Draft, redacted
from capkeep.takeover.environment import read_profile
from capkeep.takeover.model import Kind
from capkeep.takeover.nodes import Node
from capkeep.takeover.restic_repository import assignments
from capkeep.values import ValueMistake

# Options of `restic` that take no value (restic(1)); all others do.
FLAGS: Final = frozenset((
    "exclude-caches", "one-file-system", "force", "stdin", "ignore-inode", "ignore-ctime",
    "with-atime", "no-scan", "skip-if-unchanged", "use-fs-snapshot", "dry-run", "verbose", "quiet",
    "json", "no-cache", "cleanup-cache", "no-lock", "insecure-tls", "insecure-no-password",
    "no-extra-verify", "prune", "compact", "read-data", "with-cache", "stdin-from-command",
    "exclude-cloud-files",
))  # fmt: skip
SHORT: Final = {
    "backup": {"e": "exclude", "x": "one-file-system", "H": "host", "f": "force", "n": "dry-run"},
    "forget": {"l": "keep-last", "H": "keep-hourly", "d": "keep-daily", "w": "keep-weekly",
               "m": "keep-monthly", "y": "keep-yearly", "n": "dry-run", "g": "group-by", "c": "compact"},
    "": {"r": "repository", "p": "password-file", "q": "quiet", "v": "verbose", "o": "option"},
}  # fmt: skip
PROFILE_OPTIONS: Final = {
    "repo": "repository", "repository": "repository", "repository-file": "repository-file",
    "password-file": "password-file", "password-command": "password-command", "cacert": "cacert",
    "option": "option", "limit-upload": "limit-upload", "limit-download": "limit-download",
    "retry-lock": "retry-lock", "cache-dir": "cache-dir", "no-cache": "no-cache",
    "verbose": "verbose", "quiet": "quiet", "json": "json", "compression": "compression",
    "pack-size": "pack-size", "insecure-tls": "insecure-tls",
}  # fmt: skip
RUNS: Final = ("ExecStart", "ExecStartPre", "ExecStartPost", "ExecStopPost", "ExecCondition")
HARDLY: Final = "units are capkeep's own, with a sandbox of their own"
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")

Tree = dict[str, list[Node] | dict[str, list[Node]]]


def read_unit(path: str, draft: Draft) -> None:
    """A service of systemd that starts restic: its environment, its commands, its resources."""
    held: dict[str, list[Node]] = {}
    for key, node in settings(read_text(path), path, "Service"):
        held.setdefault(key, []).append(node)
    variables = _variables(held, draft)
    profile: Tree = {}
    backups = 0
    for key in RUNS:
        for node in held.pop(key, []):
            backups += _command(node, key, variables, profile, draft)
    if not backups:
        hint = "name the file that its program is configured by, or the script's environment file"
        draft.say(Kind.LEFT, Node({}, path, 0), "", "starts no `restic backup`", hint)
    node = Node({"env": Node(dict(variables), path, 0), **_tree(profile, path)}, path, 0)
    before = draft.names("jobs")
    name = os.path.splitext(os.path.basename(path))[0].rstrip("@")
    read_profile(node, draft, name)
    for job in draft.names("jobs"):
        if job not in before:
            _resources(held, draft, ("jobs", job))
    known = {"Type", "User", "Group", "LogRateLimitIntervalSec", "Restart", "SyslogIdentifier"}
    for key, nodes in held.items():
        if key not in known:
            draft.say(Kind.NOTE, nodes[0], key, HARDLY)


def settings(text: str, path: str, wanted: str) -> Iterable[tuple[str, Node]]:
    """The settings of a section of a unit (systemd.syntax(7)); an empty one takes back those before."""
    section, pending, begun = "", "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not pending and (not line or line[0] in "#;"):
            continue
        begun = begun if pending else number
        pending += line.removesuffix("\\") + (" " if line.endswith("\\") else "")
        if line.endswith("\\"):
            continue
        whole, pending = pending.strip(), ""
        if whole.startswith("["):
            section = whole.strip("[]")
        elif section == wanted and "=" in whole:
            key, _, value = whole.partition("=")
            yield key.strip(), Node(value.strip(), path, begun)


def _variables(held: dict[str, list[Node]], draft: Draft) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for node in held.pop("Environment", []):
        for word in _words(node):
            name, equals, value = word.partition("=")
            if equals:
                found[name] = node._replace(value=value)
    for node in held.pop("EnvironmentFile", []):
        file = (node.text() or "").removeprefix("-")
        try:
            found |= assignments(read_text(file), file)
        except OSError as error:
            said = f"{file} cannot be read: {error.strerror}"
            draft.say(Kind.LEFT, node, "EnvironmentFile", said)
    return found


def _words(node: Node) -> list[str]:
    try:
        return shlex.split(node.text() or "")
    except ValueError:
        return []


def _command(
    node: Node, key: str, variables: Mapping[str, Node], profile: Tree, draft: Draft
) -> int:
    """Brings a command of restic's into the profile; 1 if it is a backup, others are told."""

    def value(match: re.Match[str]) -> str:
        known = variables.get(match[1] or match[2])
        return (known.text() or "") if known else match[0]

    stripped = node._replace(value=(node.text() or "").lstrip("-@:+!"))
    words = [_VARIABLE.sub(value, word) for word in _words(stripped)]
    if not words or os.path.basename(words[0]) != "restic":
        said = f"the command is not run: {redacted(stripped.text() or '')}"
        draft.say(Kind.LEFT, node, key, said, "see whether the job still needs it")
        return 0
    if words[0].startswith("/") and words[0] not in ("/usr/bin/restic", "/usr/local/bin/restic"):
        draft.set(("engines", "restic"), "program", words[0])
    options, command, sources = parsed(words[1:])
    if command in ("unlock", "cache", "init", "prune", "check", "forget", "backup"):
        _into(profile, command, options, sources, node)
        return int(command == "backup")
    draft.say(Kind.NOTE, node, key, f"`restic {command}` is called by hand: capkeep has it too")
    return 0


def parsed(words: list[str]) -> tuple[list[tuple[str, str]], str, list[str]]:
    """Options (those without a value as "true"), the command, and what follows it."""
    options, rest = [], []
    command = ""
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            rest += queue
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals:
                value = "true" if name in FLAGS or not queue else queue.pop(0)
            options.append((name, value))
        elif word.startswith("-") and len(word) > 1:
            short = {**SHORT[""], **SHORT.get(command, {})}
            name = short.get(word[1], word[1])
            if name in FLAGS:
                options += [(short.get(letter, letter), "true") for letter in word[1:]]
            else:
                value = word[2:].removeprefix("=") or (queue.pop(0) if queue else "")
                options.append((name, value))
        elif not command:
            command = word
        else:
            rest.append(word)
    return options, command, rest


def _into(
    profile: Tree, command: str, options: list[tuple[str, str]], sources: list[str], node: Node
) -> None:
    name = {"forget": "retention"}.get(command, command)
    section = profile.setdefault(name, {})
    assert isinstance(section, dict)
    for key, value in options:
        made = node._replace(value=value)
        if key in PROFILE_OPTIONS:
            profile.setdefault(PROFILE_OPTIONS[key], [made])
        elif made not in section.setdefault(key, []):
            section[key].append(made)
    if command == "backup":
        section.setdefault("source", []).extend(node._replace(value=s) for s in sources)
    elif command == "forget":
        section["after-backup"] = [node._replace(value="true")]
    elif command == "check":
        backup = profile.setdefault("backup", {})
        assert isinstance(backup, dict)
        backup["check-after"] = [node._replace(value="true")]
    elif command == "prune":
        section["schedule"] = [node]


def _tree(profile: Tree, path: str) -> dict[str, Node]:
    def made(nodes: list[Node]) -> Node:
        return nodes[0] if len(nodes) == 1 else nodes[0]._replace(value=tuple(nodes))

    return {
        key: made(value)
        if isinstance(value, list)
        else Node({k: made(v) for k, v in value.items()}, path, 0)
        for key, value in profile.items()
    }


def _resources(held: dict[str, list[Node]], draft: Draft, job: tuple[str, str]) -> None:
    """Nice=, IOSchedulingClass=, CPUQuota= and MemoryMax= are the job's own."""
    nice = held.pop("Nice", [])
    if nice and (text := nice[-1].text() or "").isdigit() and int(text) < 20:
        draft.set(job, "nice", int(text))
    classes = {"2": "best-effort", "best-effort": "best-effort", "3": "idle", "idle": "idle"}
    for node in held.pop("IOSchedulingClass", []):
        draft.set(job, "io-class", classes.get(node.text() or ""))
    for node in held.pop("IOSchedulingPriority", []):
        text = node.text() or ""
        draft.set(job, "io-priority", int(text) if text.isdigit() and int(text) < 8 else None)
    for key, ours, form in (
        ("CPUQuota", "cpu-limit", r"\d{1,5}%"),
        ("MemoryMax", "memory-limit", r"\d+[KMGT]"),
    ):
        for node in held.pop(key, []):
            if re.fullmatch(form, node.text() or ""):
                draft.set(job, ours, node.text())
            else:
                draft.say(Kind.LEFT, node, key, "is not understood", table=job)


def read_timer(path: str, draft: Draft) -> None:
    """A timer's times, for every job that has none."""
    times: list[str] = []
    spread = ""
    for key, node in settings(read_text(path), path, "Timer"):
        text = node.text() or ""
        if key == "OnCalendar":
            try:
                calendars.parse(text)
                times.append(text)
            except ValueMistake as mistake:
                draft.say(Kind.LEFT, node, key, mistake.problem, mistake.hint)
        elif key == "RandomizedDelaySec":
            spread = text if re.fullmatch(r"[0-9a-z ]+", text) else ""
            spread = f"{spread}s" if spread.isdigit() else spread
        elif key not in ("Persistent", "AccuracySec", "Unit", "FixedRandomDelay"):
            draft.say(Kind.LEFT, node, key, "runs have times of the calendar alone")
    for name in draft.names("jobs"):
        job = ("jobs", name)
        if times and not draft.get(job, "schedule"):
            draft.set(job, "schedule", tuple(times))
            draft.set(job, "spread", spread or None)
