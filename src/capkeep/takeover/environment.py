"""A running set-up of restic or borg, as its environment says it."""

from collections.abc import Mapping

from capkeep.takeover import borgmatic_hooks
from capkeep.takeover.draft import Draft
from capkeep.takeover.model import Kind
from capkeep.takeover.nodes import Node, Section
from capkeep.takeover.repositories import REMOTES, Known, add_repository, command_source
from capkeep.takeover.restic_job import JobReader, named


def own_environment(environment: Mapping[str, str], draft: Draft) -> dict[str, Node]:
    """What this program was started with, as far as it is restic's or borg's."""
    mine = ("RESTIC_", "BORG_", *REMOTES)
    found = {k: Node(v, "the environment", 0) for k, v in environment.items() if k.startswith(mine)}
    for name, node in tuple(found.items()):
        try:
            str(node.value).encode()
        except UnicodeEncodeError:  # no configuration can hold it
            draft.say(Kind.LEFT, found.pop(name), name, "is not UTF-8")
    return found


def read_restic(variables: Mapping[str, Node], draft: Draft) -> None:
    """A repository, and a job of which people say what it backs up."""
    node = next(iter(variables.values()), Node({}, "the environment", 0))
    profile = Node({"env": Node(dict(variables), node.file, 0)}, node.file, 0)
    read_profile(profile, draft)


def read_profile(node: Node, draft: Draft, name: str = "") -> None:
    """What is known of restic, in the form of a profile of resticprofile's."""
    reader = JobReader(draft, "/")
    section = Section(node, "", draft, ())
    repository = reader.repository(section, name or "restic")
    if repository is None:
        hint = "RESTIC_REPOSITORY, or -r in the command"
        draft.say(Kind.LEFT, node, "", "names no repository of restic's", hint)
        return
    location = str(draft.get(repository, "location"))
    reader.job(section, name or named(location), repository)


def read_borg(variables: Mapping[str, Node], draft: Draft) -> None:
    """A repository, and a job of which people say what it backs up."""
    held = dict(variables)
    repository = held.pop("BORG_REPO", None)
    nowhere = next(iter(variables.values()), Node({}, "the environment", 0))
    section = Section(Node({}, nowhere.file, 0), "", draft, ())
    location = repository.text() if repository else ""
    if repository is None or not location:
        draft.say(Kind.LEFT, nowhere, "BORG_REPO", "names no repository of borg's")
        return
    password, command = held.pop("BORG_PASSPHRASE", None), held.pop("BORG_PASSCOMMAND", None)
    source = None
    if command:
        source, problem = command_source(draft, named(location), command.text() or "")
        if problem:
            section.say(Kind.LEFT, "BORG_PASSCOMMAND", problem, node=command)
    elif password:
        source = borgmatic_hooks.secret(
            draft, section, password, "BORG_PASSPHRASE", named(location)
        )
    there = held.pop("BORG_REMOTE_PATH", None)
    known = Known(
        "borg",
        location,
        repository,
        "BORG_REPO",
        source,
        ssh=held.pop("BORG_RSH", None),
        ssh_key="BORG_RSH",
        remote_path=(there.text() if there else "") or "",
    )
    table = add_repository(draft, known)
    job = draft.table("jobs", draft.free_name("jobs", "system"))
    draft.set(job, "repositories", (table[1],))
    section.table = job
    section.say(Kind.BY_HAND, "", "nothing says what is backed up", 'write include = ["/etc"]')
    for name, node in held.items():
        if name.startswith("BORG_"):
            said = "capkeep does not hand this variable to borg"
            section.say(Kind.LEFT, name, said, node=node, table=table)
