"""A job's table `drill`, checked."""

from collections.abc import Mapping

from capkeep.config import syntax
from capkeep.config.mistakes import Collector
from capkeep.config.model import DrillConfig, RepositoryConfig
from capkeep.config.schedules import check_calendar
from capkeep.config.upkeep import Table
from capkeep.engines import ENGINES
from capkeep.values import ValueMistake

SMALLEST = 1 << 20  # bytes at a time


def drill_table(
    table: Table, collector: Collector, repositories: Mapping[str, RepositoryConfig | None]
) -> DrillConfig | None:
    """The job's drills; None without such a table."""
    model = table.model.drill
    if model is None:
        return None
    for i, text in enumerate(model.schedule):
        try:
            check_calendar(text)
        except ValueMistake as mistake:
            collector.mistake(table.at("drill", "schedule", i), mistake.problem, mistake.hint)
    if model.max_size < SMALLEST:
        collector.mistake(
            table.at("drill", "max-size"), "less than 1 MiB proves nothing", 'write "1GiB"'
        )
    if model.timeout < 60:
        collector.mistake(
            table.at("drill", "timeout"), "no drill is done in less than a minute", 'write "6h"'
        )
    _check_paths(table, model, collector)
    _check_engines(table, collector, repositories)
    return DrillConfig(
        after_backup=model.after_backup, schedule=tuple(model.schedule), sample=model.sample,
        whole=model.depth == "all", max_bytes=model.max_size, timeout_seconds=model.timeout,
        always=tuple(p.rstrip("/") or "/" for p in model.always),
        scratch=model.scratch.rstrip("/"), old_every=model.old_snapshots, dumps=model.dumps,
    )  # fmt: skip


def _check_paths(table: Table, model: syntax.Drill, collector: Collector) -> None:
    for i, path in enumerate(model.always):
        if not _is_plain(path):
            collector.mistake(
                table.at("drill", "always", i), f"{path!r} is not an absolute path without ..",
                'write the path of a file or directory of the job, such as "/etc/passwd"',
            )  # fmt: skip
    if model.scratch and (not _is_plain(model.scratch) or model.scratch == "/"):
        collector.mistake(
            table.at("drill", "scratch"), f"{model.scratch!r} is not an absolute path without ..",
            'write a directory on a disk with room for max-size, such as "/srv/drills"',
        )  # fmt: skip


def _check_engines(
    table: Table, collector: Collector, repositories: Mapping[str, RepositoryConfig | None]
) -> None:
    for i, name in enumerate(table.model.repositories):
        repository = repositories.get(name)
        if repository is None or repository.engine not in ENGINES:
            continue  # told where it is defined
        if not ENGINES[repository.engine].traits.drills:
            collector.mistake(
                table.at("repositories", i),
                f"{repository.engine} has no drills yet, and repository {name} is {repository.engine}'s",
                f"take the table [jobs.{table.name}.drill] away, or this repository",
            )  # fmt: skip


def _is_plain(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/") and path.isprintable()
