"""A job's table `copies`, checked."""

from collections.abc import Mapping

from capkeep.config.mistakes import Collector
from capkeep.config.model import CopiesConfig, RepositoryConfig
from capkeep.config.names import check_names
from capkeep.config.upkeep import Table, occasions, rules
from capkeep.engines import ENGINES

Repositories = Mapping[str, RepositoryConfig | None]


def copies_table(
    table: Table, collector: Collector, repositories: Repositories, *, all_read: bool
) -> CopiesConfig | None:
    """Into which repositories the job's snapshots are copied; None without such a table."""
    model = table.model.copies
    if model is None:
        return None
    origin = _origin(table, collector)
    _targets(table, origin, collector, repositories, all_read=all_read)
    keep = rules(table, "copies", model, collector)
    never = ("then nothing is ever copied", "Sun 06:00")
    after, schedule = occasions(table, "copies", model, never, collector)
    return CopiesConfig(
        origin=origin, targets=tuple(model.into), keep=keep, after_backup=after, schedule=schedule
    )


def _origin(table: Table, collector: Collector) -> str:
    """The repository that is copied from: the one that is named, or the job's first."""
    names, named = table.model.repositories, table.model.copies
    assert named is not None, "asked before"
    if named.repository and named.repository not in names:
        collector.mistake(
            table.at("copies", "repository"),
            f"the job does not back up into {named.repository!r}",
            f"write one of its own: {', '.join(names)}",
        )
    return named.repository or next(iter(names), "")


def _targets(
    table: Table, origin: str, collector: Collector, repositories: Repositories, *, all_read: bool
) -> None:
    model = table.model
    assert model.copies is not None, "asked before"
    if not model.copies.into:
        collector.mistake(
            table.at("copies", "into"), "the job does not say into which repository it copies",
            'write into = ["NAME"]',
        )  # fmt: skip
    entries = [(n, table.at("copies", "into", i)) for i, n in enumerate(model.copies.into)]
    check_names(entries, "repository", "repositories", repositories, collector, all_read=all_read)
    source = repositories.get(origin)
    for name, place in entries:
        if name in model.repositories:
            collector.mistake(
                place, f"the job backs up into {name} itself",
                "name a repository that holds copies alone, or take it out of repositories",
            )  # fmt: skip
        elif source and (problem := _unsuited(source, repositories.get(name))):
            collector.mistake(place, *problem)


def _unsuited(source: RepositoryConfig, target: RepositoryConfig | None) -> tuple[str, str] | None:
    """Why nothing can be copied from one into the other, and what to write."""
    both = f'write repositories = ["{source.name}", "{target.name if target else "NAME"}"] instead'
    if source.engine not in ENGINES:
        return None  # told where it is defined
    if not ENGINES[source.engine].traits.copies:
        return (
            f"{source.engine} cannot copy snapshots from one repository into another",
            f"have the job back up into both: {both}",
        )
    if target is None:
        return None
    if source.engine != target.engine:
        return (
            (
                f"{source.name} is {source.engine}'s and {target.name} is {target.engine}'s:"
                " snapshots are copied between repositories of the same engine"
            ),
            f"have the job back up into both: {both}",
        )
    for one in (source, target):
        if one.engine_network:
            return (
                (
                    f"{one.name} has engine-network = true, so nothing stands between it and an"
                    " engine that would hold both passwords"
                ),
                f"take engine-network away from {one.name}, so that it has a vault",
            )
    return None
