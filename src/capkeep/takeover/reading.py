"""Which reader is for which file; the one way in."""

import os
from collections.abc import Iterable, Mapping

from capkeep.config.sources import open_at_once
from capkeep.errors import UsageError
from capkeep.takeover import environment, unit_files
from capkeep.takeover.borgmatic import looks_like, read_borgmatic
from capkeep.takeover.documents import TOML_ENDINGS, parse, read_text
from capkeep.takeover.draft import Draft
from capkeep.takeover.model import Kind, Taken
from capkeep.takeover.nodes import Node
from capkeep.takeover.restic_repository import assignments, without_shell
from capkeep.takeover.resticprofile import read_resticprofile


def read_files(paths: Iterable[str], secrets_directory: str) -> Taken:
    """Configurations of borgmatic and resticprofile, and units, in one. Raises CapkeepError, OSError."""
    draft = Draft(secrets_directory)
    # A timer is for the jobs that are there.
    ordered = sorted(paths, key=lambda p: p.endswith(".timer"))
    for path in ordered:
        _is_there(path)
        ending = os.path.splitext(path)[1].lower()
        if ending == ".service":
            unit_files.read_unit(path, draft)
        elif ending == ".timer":
            unit_files.read_timer(path, draft)
        elif ending not in (*TOML_ENDINGS, ".json") and _is_borgmatic(path):
            read_borgmatic(path, draft)
        else:
            read_resticprofile(path, draft)
    return finished(draft, ordered)


def _is_there(path: str) -> None:
    try:
        open(path, "rb", opener=open_at_once).close()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="name a file") from error


def _is_borgmatic(path: str) -> bool:
    text = read_text(path)
    if "{{" in text:
        return False  # a template of Go's, which YAML alone may not be able to read
    return looks_like(parse(text, path))


def read_environment(
    engine: str, paths: Iterable[str], own: Mapping[str, str], secrets_directory: str
) -> Taken:
    """The environment of an engine: that of files, or else of this program."""
    draft = Draft(secrets_directory)
    files = list(paths)
    variables: dict[str, Node] = {}
    for path in files:
        _is_there(path)
        variables |= without_shell(assignments(read_text(path), path), draft)
    if not files:
        variables = environment.own_environment(own, draft)
    if not variables:
        said = "holds no variables" if files else f"no variable of {engine}'s is set"
        raise UsageError(
            f"{', '.join(files)} {said}".strip(),
            hint="name the file that has them: capkeep import --restic /etc/restic/env",
        )
    (environment.read_restic if engine == "restic" else environment.read_borg)(variables, draft)
    return finished(draft, files or ["the environment"])


def finished(draft: Draft, files: list[str]) -> Taken:
    """All that is to be said of the whole: jobs that never run, secrets that are not there yet."""
    for name in draft.names("jobs"):
        if not draft.get(("jobs", name), "schedule"):
            said = f"nothing says when {name} runs, so it never does by itself"
            hint = 'write schedule = ["03:00"], or name the timer beside the file'
            nowhere = Node({}, files[0], 0)
            draft.say(Kind.LEFT, nowhere, "schedule", said, hint, table=("jobs", name))
    if not draft.names("jobs") and not draft.names("repositories"):
        draft.say(Kind.LEFT, Node({}, files[0], 0), "", "holds nothing that could be taken over")
    return draft.taken()
