"""One job of many targets as many jobs of one target each, and their repositories likewise; pure.

Everything after the loader sees only what has been expanded: job JOB with targets A and B is the
jobs JOB.A and JOB.B, and repository REPO, whose location holds {target}, is REPO.A and REPO.B.
No name that is written has a dot.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from capkeep.config import syntax
from capkeep.config.model import JobConfig, NotifyConfig, TargetConfig
from capkeep.config.validate import Checked
from capkeep.values import SecretSource

TARGET: Final = "{target}"  # in a text stands for a target's name
GROUP: Final = "@"  # before the name of a group, in a job's list of targets
EVERY: Final = "all"  # the group that all targets are in

Table = Checked[syntax.Repository]


class Pulls(NamedTuple):
    """Which jobs come for whose files, and where they keep them; by the names that are written."""

    targets: Mapping[str, tuple[TargetConfig, ...]] = {}  # of each job that has any
    templates: frozenset[str] = frozenset()  # repositories, one for each target
    uses: Mapping[str, tuple[str, ...]] = {}  # of each of these: the targets that have one

    def repository(self, name: str, target: str) -> str:
        """What the repository that is written so is called where it is that target's."""
        return of_target(name, target) if name in self.templates else name


def of_target(name: str, target: str) -> str:
    """What a job or repository is called that is one target's."""
    return f"{name}.{target}"


def as_written(name: str) -> str:
    """A name for the file of such a repository's secret, one for each target; any other is itself."""
    written, dot, _ = name.partition(".")
    return f"{written}-{TARGET}" if dot else name


def members(words: Iterable[str], targets: Iterable[TargetConfig]) -> tuple[TargetConfig, ...]:
    """The targets that a job's list names, each once; what it names and is not there is left out."""
    known = tuple(targets)
    found = (t for word in words for t in known if word == t.name or word in groups(t))
    return tuple(dict.fromkeys(found))


def groups(target: TargetConfig) -> tuple[str, ...]:
    """The words by which a job names the groups that a target is in."""
    return tuple(GROUP + name for name in (EVERY, *target.groups))


def in_secret(source: SecretSource, target: str) -> SecretSource:
    """Where that target's secret comes from."""
    return SecretSource(
        file=source.file.replace(TARGET, target),
        credential=source.credential.replace(TARGET, target),
        command=tuple(word.replace(TARGET, target) for word in source.command),
    )


def tables(name: str, table: Table, pulls: Pulls) -> Iterator[tuple[str, Table]]:
    """The repositories that one table stands for, with their names."""
    if name not in pulls.templates:
        yield name, table
    for target in pulls.uses.get(name, ()):
        yield of_target(name, target), replace(table, model=_filled(table.model, target))


def _filled(model: syntax.Repository, target: str) -> syntax.Repository:
    """The table with that target's name; what was not written stays so."""
    options = model.options
    if "identity" in options.model_fields_set:
        options = options.model_copy(update={"identity": in_secret(options.identity, target)})
    found = {
        "location": model.location.replace(TARGET, target),
        "password": in_secret(model.password, target),
        "credentials": _each(model.credentials, target),
        "keeper_credentials": _each(model.keeper_credentials, target),
        "options": options,
    }
    written = {k: v for k, v in found.items() if k in model.model_fields_set}
    return model.model_copy(update=written)


def _each(secrets: Mapping[str, SecretSource], target: str) -> dict[str, SecretSource]:
    return {key: in_secret(source, target) for key, source in secrets.items()}


def secrets_with_target(model: syntax.Repository) -> Iterator[tuple[str, ...]]:
    """The keys of a repository's table whose secrets hold {target}."""
    found: dict[tuple[str, ...], SecretSource] = {
        ("password",): model.password, ("options", "identity"): model.options.identity,
        **{("credentials", k): v for k, v in model.credentials.items()},
        **{("keeper-credentials", k): v for k, v in model.keeper_credentials.items()},
    }  # fmt: skip
    for key, source in found.items():
        if any(TARGET in text for text in (source.file, source.credential, *source.command)):
            yield key


def jobs(job: JobConfig, pulls: Pulls) -> tuple[JobConfig, ...]:
    """The jobs that one stands for: itself, or one for each of its targets."""
    if job.name not in pulls.targets:
        return (job,)
    return tuple(_of(job, target, pulls) for target in pulls.targets[job.name])


def _of(job: JobConfig, target: TargetConfig, pulls: Pulls) -> JobConfig:
    def own(name: str) -> str:
        return pulls.repository(name, target.name)

    copies = job.copies and replace(
        job.copies, origin=own(job.copies.origin), targets=tuple(map(own, job.copies.targets))
    )
    return replace(
        job,
        name=of_target(job.name, target.name),
        target=target.name,
        host=target.host_name,
        repositories=tuple(map(own, job.repositories)),
        copies=copies,
    )


def channel(notify: NotifyConfig, pulls: Pulls) -> NotifyConfig:
    """A channel that names jobs tells of all the jobs that these stand for."""
    found = (
        of_target(name, target.name) if target else name
        for name in notify.jobs
        for target in pulls.targets.get(name, (None,))
    )
    return replace(notify, jobs=tuple(found))
