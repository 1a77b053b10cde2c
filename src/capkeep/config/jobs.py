"""A job's table, put together with the defaults and checked against the repositories and paths."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from capkeep.config import schedules, syntax
from capkeep.config.copies import copies_table
from capkeep.config.drills import drill_table
from capkeep.config.mistakes import Place, nearest
from capkeep.config.model import JobConfig, RepositoryConfig
from capkeep.config.names import check_names
from capkeep.config.resources import check_resources
from capkeep.config.sources import Reader
from capkeep.config.syntax import kebab
from capkeep.config.upkeep import check_table, retention_table
from capkeep.config.validate import Checked
from capkeep.values import Glob, ValueMistake, check_exclude, is_at_or_below, parse_glob

PSEUDO: Final = {
    "/proc": "shows processes, not files",
    "/sys": "shows the kernel's state, not files",
    "/dev": "holds devices, which udev makes anew at every start",
    "/run": "holds what is forgotten at every start",
}

Defaults = Checked[syntax.JobDefaults]
Entry = tuple[str, Place]


class JobTable:
    """A job's table over the defaults: what holds, and where it was written."""

    def __init__(
        self, name: str, own: Checked[syntax.Job], defaults: Mapping[str, Defaults]
    ) -> None:
        self._own = own
        self._inherited = {f: d for f, d in defaults.items() if not own.gives(f)}
        update = {f: getattr(d.model, f) for f, d in self._inherited.items()}
        self.name = name
        self.model = own.model.model_copy(update=update)

    def at(self, field: str, *path: str | int) -> Place:
        """Where the setting that holds is written, or where it should be."""
        if field in self._inherited:
            return self._inherited[field].at(kebab(field), *path)
        return self._own.at(kebab(field), *path)

    def written(self, field: str) -> bool:
        """Whether the setting is anything but built in."""
        return field in self._inherited or self._own.gives(field)

    @property
    def place(self) -> Place:
        """Where the job is written."""
        return self._own.at()

    def own(self, field: str) -> bool:
        """Whether it is written in the job itself."""
        return self._own.gives(field)

    def entries(self, field: str, values: Iterable[str]) -> list[Entry]:
        """A list's elements, each with its own line."""
        return [(value, self.at(field, i)) for i, value in enumerate(values)]


class JobChecker:
    """Turns one table after another into values."""

    def __init__(
        self,
        repositories: Mapping[str, RepositoryConfig | None],
        places: Iterable[RepositoryConfig],
        reader: Reader,
        *,
        all_read: bool,
    ) -> None:
        """`repositories`: by the names that jobs write; `places`: all that there are on this host."""
        self._repositories = repositories  # None: known, but wrong itself
        self._local = [r for r in places if r.location.is_local]
        self._reader = reader
        self._collector = reader.collector
        self._all_read = all_read

    def check(self, table: JobTable, wrong: frozenset[str]) -> JobConfig:
        """The job as a value. After mistakes it is not fit for use, only for further checks."""
        model = table.model
        self._repository_names(table, wrong)
        include = self._includes(table, wrong)
        allow_empty = self._allow_empty(table, include)
        for tag, place in table.entries("tags", model.tags):
            if not tag or "," in tag or tag != tag.strip() or not tag.isprintable():
                self._collector.mistake(
                    place, f"{tag!r} cannot be a tag", "write one tag an element, without commas"
                )
        if model.host and (not model.host.isprintable() or " " in model.host):
            self._collector.mistake(table.at("host"), "is not a host name", 'write host = "name"')
        if table.written("timeout") and model.timeout < 60:
            self._collector.mistake(
                table.at("timeout"), "no backup is done in less than a minute", 'write "24h"'
            )
        return JobConfig(
            name=table.name,
            repositories=tuple(model.repositories),
            include=include,
            exclude=self._excludes(table),
            may_miss=self._may_miss(table),
            allow_empty=allow_empty,
            one_file_system=model.one_file_system,
            canary=model.canary,
            max_shrink_percent=model.max_shrink,
            tags=tuple(model.tags),
            host=model.host,
            timeout_seconds=model.timeout,
            max_age_seconds=model.max_age,
            schedule=self._schedule(table),
            check=check_table(table, self._collector),
            retention=retention_table(table, self._collector),
            drill=drill_table(table, self._collector, self._repositories),
            copies=copies_table(
                table, self._collector, self._repositories, all_read=self._all_read
            ),
            notify=tuple(model.notify),
            dumps=tuple(model.dumps),
            before=tuple(model.before),
            after=tuple(model.after),
            on_success=tuple(model.on_success),
            on_failure=tuple(model.on_failure),
            spread_seconds=model.spread,
            on_battery=model.on_battery,
            on_metered=model.on_metered,
            resources=check_resources(model, table.at, table.written, self._collector),
        )

    def _repository_names(self, table: JobTable, wrong: frozenset[str]) -> None:
        names = table.model.repositories
        if not names and "repositories" not in wrong:
            first = next(iter(self._repositories), "NAME")
            self._collector.mistake(
                table.at("repositories"),
                "the job has no repository",
                f'write repositories = ["{first}"]',
            )
        check_names(
            table.entries("repositories", names),
            "repository",
            "repositories",
            self._repositories,
            self._collector,
            all_read=self._all_read,
        )

    def _includes(self, table: JobTable, wrong: frozenset[str]) -> tuple[str, ...]:
        entries = table.entries("include", table.model.include)
        entries += self._listed(table, "include_from", table.model.include_from)
        found: dict[str, Place] = {}
        for path, place in entries:
            clean = self._include(path, place, here=not table.model.targets)
            if clean in found:
                said = f"{clean} is included twice, the first time at {found[clean].where()}"
                self._collector.mistake(place, said, "name it once")
            elif clean:
                found[clean] = place
        if not entries and not wrong & {"include", "include-from"} and not table.model.include_from:
            self._collector.mistake(
                table.at("include"), "the job includes nothing", 'write include = ["/etc", "/home"]'
            )
        for path, place in found.items() if not table.model.targets else ():
            self._remarks(path, place, found)
        return tuple(found)

    def _include(self, path: str, place: Place, *, here: bool) -> str:
        """The path in its plain form; "" after a mistake. `here`: it is a path of this host."""
        if not path.startswith("/"):
            full = os.path.expanduser(path) if path.startswith("~") else f"/{path}"
            self._collector.mistake(
                place, f"{path!r} is not an absolute path", f'write "{os.path.normpath(full)}"'
            )
            return ""
        parts = path.split("/")
        if ".." in parts or any(ord(c) < 32 for c in path):
            self._collector.mistake(
                place, f"{path!r} is not a plain path", f'write "{os.path.normpath(path)}"'
            )
            return ""
        clean = "/" + "/".join(p for p in parts if p not in ("", "."))
        for pseudo, reason in PSEUDO.items():
            if is_at_or_below(clean, pseudo):
                self._collector.mistake(
                    place,
                    f"{clean} is not on a disk: {pseudo} {reason}",
                    "take it away; a restored system makes it by itself",
                )
                return ""
        for repository in self._local if here else ():
            if is_at_or_below(clean, repository.location.path):
                self._collector.mistake(
                    place,
                    f"{clean} lies in repository {repository.name}, which rooms that read"
                    " files never see",
                    "take it away; copy a repository into another one instead",
                )
                return ""
        return clean

    def _remarks(self, path: str, place: Place, found: Mapping[str, Place]) -> None:
        real = os.path.realpath(path)
        for repository in self._local:
            local = repository.location.path
            if is_at_or_below(local, real):
                self._collector.remark(
                    place,
                    f"repository {repository.name} at {local} lies in {path}: it is hidden"
                    " from the reader, so it is not part of the backup",
                )
        if os.path.islink(path):
            target = os.path.realpath(path)
            if not any(is_at_or_below(target, other) for other in found if other != path):
                self._collector.remark(
                    place,
                    f"{path} is a symbolic link: the link is kept, not what it points to",
                    f"to keep that too, include {target}",
                )

    def _allow_empty(self, table: JobTable, include: tuple[str, ...]) -> tuple[str, ...]:
        paths = []
        for path, place in table.entries("allow_empty", table.model.allow_empty):
            clean = "/" + "/".join(p for p in path.split("/") if p not in ("", "."))
            if clean not in include or not path.startswith("/"):
                guess = nearest(path, include)
                hint = f'did you mean "{guess}"?' if guess else "name a path that include names"
                self._collector.mistake(place, f"{path!r} is not one of the job's includes", hint)
            paths.append(clean)
        return tuple(paths)

    def _excludes(self, table: JobTable) -> tuple[str, ...]:
        entries = table.entries("exclude", table.model.exclude)
        entries += self._listed(table, "exclude_from", table.model.exclude_from)
        self._each(entries, check_exclude)
        return tuple(pattern for pattern, _ in entries)

    def _may_miss(self, table: JobTable) -> tuple[Glob, ...]:
        globs: list[Glob] = []
        entries = table.entries("may_miss", table.model.may_miss)
        self._each(entries, lambda text: globs.append(parse_glob(text)))
        return tuple(globs)

    def _schedule(self, table: JobTable) -> tuple[str, ...]:
        entries = table.entries("schedule", table.model.schedule)
        self._each(entries, schedules.check_calendar)
        schedules.check_spread(table, self._collector)
        return tuple(text for text, _ in entries)

    def _each(self, entries: Iterable[Entry], parse: Callable[[str], None]) -> None:
        for text, place in entries:
            try:
                parse(text)
            except ValueMistake as mistake:
                self._collector.mistake(place, mistake.problem, mistake.hint)

    def _listed(self, table: JobTable, field: str, names: Iterable[str]) -> list[Entry]:
        return [
            entry
            for name, place in table.entries(field, names)
            for entry in self._reader.list_lines(name, place)
        ]
