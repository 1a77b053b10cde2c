"""A repository of ours out of a profile of resticprofile's, or of restic's own options and variables."""

import os
import shlex
from typing import Final

from capkeep.takeover.documents import read_text
from capkeep.takeover.draft import Draft
from capkeep.takeover.model import Kind, Path
from capkeep.takeover.nodes import Node, Section
from capkeep.takeover.repositories import REMOTES, Known, add_repository, command_source
from capkeep.takeover.restic_words import NOTED
from capkeep.values import SecretSource

SILENT: Final = ("TMPDIR", "TMP", "TEMP", "HOME", "PATH", "LANG", "XDG_CACHE_HOME", "GOMAXPROCS")


class RepositoryReader:
    """Makes tables of repositories out of one profile after another."""

    def __init__(self, draft: Draft, folder: str) -> None:
        self._draft = draft
        self._folder = folder  # that relative paths begin at

    def read(self, profile: Section, name: str) -> Path | None:
        """The profile's repository; None if it names none."""
        environment = self._environment(profile)
        node = next(
            (n for n in (profile.take("repository"), environment.pop("RESTIC_REPOSITORY", None)) if n),
            None,
        )  # fmt: skip
        file = profile.take("repository-file") or environment.pop("RESTIC_REPOSITORY_FILE", None)
        location = profile.text_of(node, "repository") if node else ""
        if not location and file:
            node, location = file, self._first_line(profile, file, "repository-file")
        password = self._password(profile, environment, name)
        self._extra(profile, environment)
        if node is None or not location:
            return None
        location = location.removeprefix("local:")
        if location.startswith("~"):
            location = os.path.expanduser(location)
        kept = {v: n for v, n in environment.items() if v.startswith(REMOTES)}
        table = add_repository(
            self._draft, Known("restic", location, node, "repository", password, kept)
        )
        self._reach(profile, table)
        return table

    def _environment(self, profile: Section) -> dict[str, Node]:
        """Variables by name; values that cannot be known are told and left out."""
        section = profile.section("env")
        found = {}
        for key in section.left():
            node = section.take(key)
            text = section.text_of(node, key) if node else ""
            if node and text:
                found[key.upper()] = node._replace(value=text)
        for text, node in profile.texts("env-file"):
            path = self.absolute(text)
            try:
                found |= without_shell(assignments(read_text(path), path), self._draft)
            except OSError as error:
                said = f"{path} cannot be read: {error.strerror}"
                profile.say(Kind.LEFT, "env-file", said, node=node)
        return found

    def _password(
        self, profile: Section, environment: dict[str, Node], name: str
    ) -> SecretSource | None:
        file = profile.take("password-file") or environment.pop("RESTIC_PASSWORD_FILE", None)
        command = profile.take("password-command") or environment.pop(
            "RESTIC_PASSWORD_COMMAND", None
        )
        given = environment.pop("RESTIC_PASSWORD", None)
        if file and (path := profile.text_of(file, "password-file")):
            return SecretSource(file=self.absolute(path))
        if command and (text := profile.text_of(command, "password-command")):
            source, problem = command_source(self._draft, name, text)
            if problem:
                profile.say(Kind.LEFT, "password-command", problem, node=command)
            return source
        return self._draft.secret(name, given.text() or "") if given else None

    def _extra(self, profile: Section, environment: dict[str, Node]) -> None:
        """Other variables of restic's."""
        for variable, node in environment.items():
            if variable.startswith(REMOTES) or variable in SILENT:
                continue
            key = variable.removeprefix("RESTIC_").lower().replace("_", "-")
            if variable == "RESTIC_CACERT" and "cacert" not in profile:
                profile.put("cacert", node)
            elif variable.startswith("RESTIC_") and key in ("cache-dir", "progress-fps"):
                profile.say(Kind.NOTE, f"env.{variable}", NOTED["cache-dir"], node=node)
            else:
                said = "capkeep does not hand this variable to restic"
                profile.say(Kind.LEFT, f"env.{variable}", said, node=node)

    def _reach(self, profile: Section, table: Path) -> None:
        node = profile.take("cacert")
        if node and (path := profile.text_of(node, "cacert")):
            location = str(self._draft.get(table, "location"))
            if location.startswith(("rest:", "s3:")):
                self._draft.set(table, "ca-file", self.absolute(path), below="options")
            else:
                said = "has a meaning for rest: and s3: alone"
                profile.say(Kind.LEFT, "cacert", said, node=node, table=table)
        for text, item in profile.texts("option"):
            key, _, value = text.partition("=")
            if key == "s3.region" and value:
                self._draft.set(table, "region", value, below="options")
            else:
                said = f"{key}: restic's own ways to a place are the vault's here"
                profile.say(Kind.LEFT, "option", said, node=item, table=table)

    def _first_line(self, profile: Section, node: Node, key: str) -> str:
        path = self.absolute(profile.text_of(node, key))
        try:
            return read_text(path).strip()
        except OSError as error:
            profile.say(Kind.LEFT, key, f"{path} cannot be read: {error.strerror}", node=node)
            return ""

    def absolute(self, path: str) -> str:
        """A path of the configuration, which begins at its own folder."""
        path = os.path.expanduser(path) if path.startswith("~") else path
        return os.path.normpath(os.path.join(self._folder, path)) if path else ""


def without_shell(variables: dict[str, Node], draft: Draft) -> dict[str, Node]:
    """Variables whose values stand there; what a shell would have to make is told and left out."""
    found = {}
    for name, node in variables.items():
        if any(mark in (node.text() or "") for mark in ("$(", "${", "`")):
            said = "is made by a shell, and none is run here"
            draft.say(Kind.LEFT, node, name, said, "write what it stands for")
        else:
            found[name] = node
    return found


def assignments(text: str, path: str) -> dict[str, Node]:
    """`NAME=value` lines of an environment file (systemd.exec(5), EnvironmentFile=), or of a shell."""
    found = {}
    for number, raw in enumerate(text.replace("\\\n", "  ").splitlines(), 1):
        line = raw.strip().removeprefix("export ").lstrip()
        name, equals, value = line.partition("=")
        if not equals or not name.isidentifier() or line.startswith(("#", ";")):
            continue
        try:
            words = shlex.split(value, comments=True)
        except ValueError:
            words = [value]
        found[name] = Node(" ".join(words), path, number)
    return found
