"""From the configuration directory to one checked value, or to every mistake in it."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, Generic, NamedTuple

from capkeep.config import expand, pulled, schedules, syntax
from capkeep.config.dumps import DumpChecker, all_named, check_dump_names
from capkeep.config.hooks import HookChecker, check_hook_names, hooks_of
from capkeep.config.host import host_of, launching_user, limits_of
from capkeep.config.jobs import JobChecker, JobTable
from capkeep.config.mirrors import MirrorChecker
from capkeep.config.mistakes import Collector, Mistake, MistakesError, Place
from capkeep.config.model import (
    Config,
    DumpConfig,
    HookConfig,
    JobConfig,
    NotifyConfig,
    RepositoryConfig,
    Setting,
    TargetConfig,
)
from capkeep.config.names import check_names, remark_unused
from capkeep.config.notify import NotifyChecker, check_metrics
from capkeep.config.repositories import RepositoryChecker, find_program
from capkeep.config.settings import job_settings, table_settings
from capkeep.config.sources import Owner, Reader, Source
from capkeep.config.syntax import NAME_PATTERN
from capkeep.config.targets import TargetChecker
from capkeep.config.validate import Checked, TableT, check, known_keys, unknown_key
from capkeep.engines import ENGINES
from capkeep.values import Location

__all__ = ["Config", "Mistake", "MistakesError", "load"]

ONE_OF: Final = {
    "repositories": "repository",
    "jobs": "job",
    "notify": "channel",
    "dumps": "dump",
    "hooks": "hook",
    "targets": "target",
}
SINGLE: Final = ("defaults", "host", "limits", "metrics", "pull", "watch")  # tables without names
NAME_HINT: Final = "use a-z, 0-9, - and _, at most 32, beginning with a letter or digit"


class Named(NamedTuple, Generic[TableT]):
    """A checked table with the keys that were wrong in it."""

    table: Checked[TableT]
    wrong: frozenset[str]


def load(config_dir: str, *, user_mode: bool = False) -> Config:
    """The configuration in that directory. Raises MistakesError (a ConfigError) with all mistakes.

    In system mode files and secrets must be root's, in user mode the caller's own.
    """
    loader = _Loader(os.path.abspath(config_dir), user_mode=user_mode)
    config = loader.load()
    if loader.collector.mistakes or config is None:
        raise MistakesError(loader.collector.mistakes)
    return config


class _Loader:
    def __init__(self, directory: str, *, user_mode: bool) -> None:
        self.collector = Collector()
        self._directory = directory
        self._owner = Owner(user_mode=user_mode)
        self._user_mode = user_mode
        self._dump_names: dict[str, Place] = {}
        self._streamed: set[str] = set()  # dumps
        self._hook_names: dict[str, Place] = {}
        self._target_names: dict[str, Place] = {}
        self._reader = Reader(directory, self._owner, self.collector)
        self._settings: dict[str, Setting] = {}

    def load(self) -> Config | None:
        sources, all_read = self._reader.sources()
        if not sources:
            return None
        for source in sources:
            self._top_level(source)
        host = self._single(sources, ("host",), syntax.Host)
        self._owner.reader = -1 if self._user_mode else launching_user(host_of(host))
        limits = self._single(sources, ("limits",), syntax.Limits)
        watch = self._single(sources, ("watch",), syntax.Watch)
        engines = {
            name: self._single(sources, ("engines", name), syntax.Engine)
            for name in map(syntax.kebab, syntax.Engines.model_fields)
        }
        defaults = self._single(sources, ("defaults",), syntax.JobDefaults)
        pull = self._single(sources, ("pull",), syntax.Pull)
        targets = self._targets(sources, pull)
        places = self._named(sources, "repositories", syntax.Repository)
        survey = pulled.Survey({name: table for name, (table, _) in places.items()}, targets)
        tables = {
            name: (survey.table(name, table, defaults), wrong)
            for name, (table, wrong) in self._named(sources, "jobs", syntax.Job).items()
        }
        pulls = survey.pulls(self.collector, all_read=all_read)
        repositories, written = self._repositories(sources, places, engines, pulls)
        dumps = self._dumps(sources)
        hooks = self._hooks(sources, host)
        checker = JobChecker(written, repositories, self._reader, all_read=all_read)
        jobs = self._jobs(tables, checker, written, pulls, all_read=all_read)
        notify = self._notify(sources, jobs, all_read=all_read)
        metrics = self._single(sources, ("metrics",), syntax.Metrics)
        after_pulls = self._after_pulls(pull, all_read=all_read)
        self._whole(
            sources[0], written, jobs, pulls.targets.values(), after_pulls, all_read=all_read
        )
        self._settings |= table_settings("metrics", syntax.Metrics, metrics)
        self._settings |= table_settings("host", syntax.Host, host)
        self._settings |= table_settings("pull", syntax.Pull, pull)
        self._settings |= table_settings("limits", syntax.Limits, limits)
        self._settings |= table_settings("watch", syntax.Watch, watch)
        return Config(
            directory=self._directory,
            files=tuple(s.file for s in sources),
            repositories=repositories,
            jobs=tuple(one for job in jobs for one in expand.jobs(job, pulls)),
            host=host_of(host),
            limits=limits_of(limits),
            notify=tuple(expand.channel(n, pulls) for n in notify),
            metrics_directory=check_metrics(metrics.get("directory"), self.collector),
            watch=schedules.watch(watch, self.collector),
            settings=self._settings,
            remarks=tuple(sorted(self.collector.remarks)),
            dumps=dumps,
            hooks=hooks,
            targets=targets,
            after_pulls=after_pulls,
            parallel_pulls=pull["parallel"].model.parallel if "parallel" in pull else None,
        )

    # -- tables

    def _top_level(self, source: Source) -> None:
        """Unknown tables, and engines that are not known here."""
        known = known_keys(syntax.Document)
        for key, value in source.data.items():
            if key not in known:
                self.collector.mistake(source.at(key), *unknown_key(key, known, {}))
            elif not isinstance(value, dict):
                hint = f"write [{key}]" if key in SINGLE else ""
                hint = hint or f"write [{key}.NAME]"
                self.collector.mistake(source.at(key), "must be a table", hint)
        engines = source.data.get("engines")
        for key in engines if isinstance(engines, dict) else ():
            if key not in known_keys(syntax.Engines):
                problem, hint = unknown_key(str(key), known_keys(syntax.Engines), {})
                self.collector.mistake(source.at("engines", key), problem, hint)

    def _single(
        self, sources: Iterable[Source], path: tuple[str, ...], kind: type[TableT]
    ) -> Mapping[str, Checked[TableT]]:
        """A table that all files may add to: the fields it sets, each set in one place only."""
        found: dict[str, Checked[TableT]] = {}
        for source in sources:
            data: object = source.data
            for key in path:
                data = data.get(key) if isinstance(data, dict) else None
            if data is None or (len(path) == 1 and not isinstance(data, dict)):
                continue
            table, _ = check(kind, source, path, data, self.collector)
            for field in table.model.model_fields_set:
                if field in found:
                    place, other = table.at(syntax.kebab(field)), found[field]
                    first = other.at(syntax.kebab(field))
                    self.collector.mistake(
                        place, f"is already set at {first.where()}", "set it once"
                    )
                else:
                    found[field] = table
        return found

    def _named(
        self, sources: Iterable[Source], group: str, kind: type[TableT]
    ) -> Mapping[str, Named[TableT]]:
        """The tables of a group by name, each defined in one place only."""
        found: dict[str, Named[TableT]] = {}
        for source in sources:
            tables = source.data.get(group)
            for name, data in tables.items() if isinstance(tables, dict) else ():
                place = source.at(group, name)
                if not _is_name(name):
                    self.collector.mistake(place, f"{name!r} cannot be a name", NAME_HINT)
                if not isinstance(data, dict):
                    hint = f"write [{group}.NAME] above its keys"
                    self.collector.mistake(place, "must be a table", hint)
                    continue
                named = Named(*check(kind, source, (group, name), data, self.collector))
                if name in found:
                    first = found[name].table.at()
                    said = f"{ONE_OF[group]} {name} is also defined at {first.where()}"
                    self.collector.mistake(place, said, "rename one, or put them together")
                    continue
                found[name] = named
        return found

    # -- repositories and jobs

    def _repositories(
        self,
        sources: tuple[Source, ...],
        tables: Mapping[str, Named[syntax.Repository]],
        engines: Mapping[str, Mapping[str, Checked[syntax.Engine]]],
        pulls: expand.Pulls,
    ) -> tuple[tuple[RepositoryConfig, ...], dict[str, RepositoryConfig | None]]:
        """All of them, and by each name that is written one of those that it stands for.

        None: it is defined, but cannot be understood or is nobody's.
        """
        used = {table.model.engine for table, _ in tables.values()}
        programs = {
            name: self._program(sources[0], name, given, used=name in used)
            for name, given in engines.items()
        }
        checker = RepositoryChecker(programs, self._owner, self.collector)
        values: list[RepositoryConfig] = []
        places: dict[Location, str] = {}
        written: dict[str, RepositoryConfig | None] = {}
        for name, (table, wrong) in tables.items():
            fields = dict.fromkeys(table.model.model_fields_set, table)
            self._settings |= table_settings(f"repositories.{name}", syntax.Repository, fields)
            written[name] = None
            for own, filled in expand.tables(name, table, pulls):
                value = checker.check(own, filled, wrong)
                if value is None:
                    continue
                first = places.setdefault(_place(value.location), own)
                if first != own:
                    said = f"repository {first} is at the same place"
                    self.collector.mistake(table.at("location"), said, "use one name for it")
                values.append(value)
                written[name] = written[name] or replace(value, name=name)
        return tuple(values), written

    def _program(
        self, source: Source, name: str, given: Mapping[str, Checked[syntax.Engine]], *, used: bool
    ) -> str:
        """Where an engine's program is; looked for only if a repository needs it."""
        table = given.get("program")
        place = table.at("program") if table else source.at("engines", name, "program")
        written = table.model.program if table else ""
        program = ""
        if used:
            program = find_program(ENGINES[name].traits, written, place, self.collector)
        if used or table:
            self._settings[f"engines.{name}.program"] = Setting(
                value=program or written, place=place if table else None
            )
        return program

    def _targets(
        self, sources: tuple[Source, ...], pull: Mapping[str, Checked[syntax.Pull]]
    ) -> tuple[TargetConfig, ...]:
        checker = TargetChecker(pull, self._owner, self.collector)
        targets = []
        for name, (table, wrong) in self._named(sources, "targets", syntax.Target).items():
            self._target_names[name] = table.at()
            targets.append(checker.check(name, table, wrong))
            fields = dict.fromkeys(table.model.model_fields_set, table)
            self._settings |= table_settings(f"targets.{name}", syntax.Target, fields)
        return tuple(targets)

    def _jobs(
        self,
        tables: Mapping[str, tuple[JobTable, frozenset[str]]],
        checker: JobChecker,
        repositories: Mapping[str, RepositoryConfig | None],
        pulls: expand.Pulls,
        *,
        all_read: bool,
    ) -> tuple[JobConfig, ...]:
        """The jobs as they are written; what each stands for has rooms of its own."""
        mirrors = MirrorChecker(repositories, self._streamed, self.collector)
        jobs = []
        rooms: dict[str, str] = {}
        for whole, wrong in tables.values():
            job = checker.check(whole, wrong)
            mirrors.check(whole)
            check_dump_names(whole, self._dump_names, self.collector, all_read=all_read)
            check_hook_names(whole, self._hook_names, self.collector, all_read=all_read)
            self._settings |= job_settings(whole)
            jobs.append(replace(job, dumps=all_named(job.dumps, self._dump_names)))
            for one in expand.jobs(job, pulls):
                for repository in dict.fromkeys(one.repositories):
                    pair = f"job {one.name} with repository {repository}"
                    other = rooms.setdefault(f"{one.name}-{repository}", pair)
                    if other != pair:
                        said = f"{pair} would have the same room as {other}"
                        self.collector.mistake(whole.place, said, "rename one of them")
        return tuple(jobs)

    def _notify(
        self, sources: tuple[Source, ...], jobs: tuple[JobConfig, ...], *, all_read: bool
    ) -> tuple[NotifyConfig, ...]:
        checker = NotifyChecker([j.name for j in jobs], self._owner, self.collector)
        channels = []
        for name, (table, wrong) in self._named(sources, "notify", syntax.Notify).items():
            channels.append(checker.check(name, table, wrong, all_read=all_read))
            fields = dict.fromkeys(table.model.model_fields_set, table)
            self._settings |= table_settings(f"notify.{name}", syntax.Notify, fields)
        if all_read:
            checker.check_jobs(jobs, self._settings, [c.name for c in channels])
        return tuple(channels)

    def _dumps(self, sources: tuple[Source, ...]) -> tuple[DumpConfig, ...]:
        checker = DumpChecker(self.collector, user_mode=self._user_mode)
        dumps = []
        for name, (table, wrong) in self._named(sources, "dumps", syntax.Dump).items():
            self._dump_names[name] = table.at()
            dump = checker.check(name, table, wrong)
            self._streamed |= {name} if dump and dump.stream else set()
            dumps += [dump] if dump else []
            fields = dict.fromkeys(table.model.model_fields_set, table)
            self._settings |= table_settings(f"dumps.{name}", syntax.Dump, fields)
        return tuple(dumps)

    def _hooks(
        self, sources: tuple[Source, ...], host: Mapping[str, Checked[syntax.Host]]
    ) -> tuple[HookConfig, ...]:
        prefix = host_of(host).user_prefix
        checker = HookChecker(self.collector, prefix, user_mode=self._user_mode)
        hooks = []
        for name, (table, wrong) in self._named(sources, "hooks", syntax.Hook).items():
            self._hook_names[name] = table.at()
            hooks.append(checker.check(name, table, wrong))
            fields = dict.fromkeys(table.model.model_fields_set, table)
            self._settings |= table_settings(f"hooks.{name}", syntax.Hook, fields)
        return tuple(hooks)

    def _after_pulls(
        self, pull: Mapping[str, Checked[syntax.Pull]], *, all_read: bool
    ) -> tuple[str, ...]:
        table = pull.get("after")
        if table is None:
            return ()
        names = tuple(table.model.after)
        entries = [(name, table.at("after", i)) for i, name in enumerate(names)]
        check_names(entries, "hook", "hooks", self._hook_names, self.collector, all_read=all_read)
        return names

    def _whole(
        self,
        source: Source,
        repositories: Mapping[str, RepositoryConfig | None],
        jobs: tuple[JobConfig, ...],
        sent: Iterable[tuple[TargetConfig, ...]],
        after_pulls: tuple[str, ...],
        *,
        all_read: bool,
    ) -> None:
        """What only the whole configuration can show."""
        if not all_read:
            return
        nowhere = Place(source.file, 0, "")
        if not repositories:
            hint = "define [repositories.NAME]; `capkeep config example` shows one"
            self.collector.mistake(nowhere, "no repository is defined", hint)
        if not jobs and not any("jobs" in m.key for m in self.collector.mistakes):
            hint = "define [jobs.NAME]; `capkeep config example` shows one"
            self.collector.mistake(nowhere, "no job is defined", hint)
        used = {name for job in jobs for name in job.repositories}
        used |= {name for job in jobs if job.copies for name in job.copies.targets}
        for name in repositories:
            setting = self._settings.get(f"repositories.{name}.location")
            setting = setting or self._settings.get(f"repositories.{name}.pulled-by")
            if name not in used and setting and setting.place:
                self.collector.remark(setting.place, f"no job uses repository {name}")
        taken = [name for job in jobs for name in job.dumps]
        remark_unused(self._dump_names, taken, "takes dump", "dumps", self.collector)
        named = [target.name for found in sent for target in found]
        remark_unused(self._target_names, named, "pulls from target", "targets", self.collector)
        run = [*after_pulls, *(name for job in jobs for name in hooks_of(job))]
        remark_unused(self._hook_names, run, "runs hook", "before", self.collector)


def _is_name(name: str) -> bool:
    return re.fullmatch(NAME_PATTERN, name) is not None


def _place(location: Location) -> Location:
    """What two names of one place have in common."""
    return location if location.engine_only else location._replace(text="")
