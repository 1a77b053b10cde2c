"""What a job cannot ask of an rdiff-backup repository: a mirror of one job, with a way back in time."""

from collections.abc import Collection, Mapping
from typing import Final

from capkeep.config.jobs import JobTable
from capkeep.config.mistakes import Collector
from capkeep.config.model import RepositoryConfig

ENGINE: Final = "rdiff-backup"
RULES: Final = (
    "keep_hourly",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_yearly",
    "keep_tags",
)


class MirrorChecker:
    """Looks at one job after another."""

    def __init__(
        self,
        repositories: Mapping[str, RepositoryConfig | None],
        streamed: Collection[str],
        collector: Collector,
    ) -> None:
        """`streamed`: the names of dumps that are streamed into repositories."""
        self._mirrors = {n for n, r in repositories.items() if r and r.engine == ENGINE}
        self._streamed = streamed
        self._collector = collector
        self._jobs: dict[str, str] = {}  # the first job of each repository

    def check(self, table: JobTable) -> None:
        """Tell the collector of every mistake."""
        used = [n for n in dict.fromkeys(table.model.repositories) if n in self._mirrors]
        if not used:
            return
        for name in used if not table.model.targets else ():  # of those each has its own
            first = self._jobs.setdefault(name, table.name)
            if first != table.name:
                self._collector.mistake(
                    table.at("repositories"),
                    f"repository {name} is a mirror of what job {first} keeps: {ENGINE} would take"
                    " this job's files for changes of the other's",
                    "give every job a repository of its own",
                )
        self._retention(table, used[0])
        for i, dump in enumerate(table.model.dumps):
            if dump in self._streamed:
                self._collector.mistake(
                    table.at("dumps", i),
                    f"dump {dump} is streamed, which {ENGINE} (repository {used[0]}) cannot keep",
                    f"take stream = true away from [dumps.{dump}]: it is then written to a file first",
                )

    def _retention(self, table: JobTable, name: str) -> None:
        model = table.model.retention
        if model is None:
            return
        for field in RULES:
            if getattr(model, field):
                key = field.replace("_", "-")
                self._collector.mistake(
                    table.at("retention", key),
                    f"{ENGINE} (repository {name}) can only remove its oldest snapshots, and"
                    f" {key} would take some from between",
                    'write keep-within = "90d" or keep-last = 90, or keep this job\'s long history'
                    " in a job with another engine",
                )
