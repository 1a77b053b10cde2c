"""The effective settings, each as it would be written and with the place that set it."""

from collections.abc import Mapping
from typing import Final

from pydantic_core import PydanticUndefined

from capkeep.config.jobs import JobTable
from capkeep.config.model import Config, Setting
from capkeep.config.quoting import toml
from capkeep.config.read_data import ReadData
from capkeep.config.syntax import Table, kebab
from capkeep.config.validate import Checked, TableT
from capkeep.values import SecretSource, format_duration, format_rate, format_size

WHAT: Final = (
    "targets",
    "repositories",
    "include",
    "include_from",
)  # what a job is about comes first
# Groups of tables with names.
NAMED: Final = ("repositories", "jobs", "engines", "notify", "dumps", "hooks", "targets")
PRINTERS: Final = {
    "memory": format_size,
    "max_size": format_size,
    "quota": format_size,
    "free_space": format_size,
    "timeout": format_duration,
    "max_age": format_duration,
    "keep_within": format_duration,
    "retry_for": format_duration,
    "spread": format_duration,
    "every": format_duration,
    "grace": format_duration,
    "max_shrink": "{}%".format,
    "cpu_limit": "{}%".format,
    "memory_limit": format_size,
    "upload_limit": format_rate,
    "download_limit": format_rate,
    "lock_wait": format_duration,
    "retry_wait": format_duration,
}


def table_settings(
    prefix: str, kind: type[Table], fields: Mapping[str, Checked[TableT]]
) -> dict[str, Setting]:
    """A table's settings by dotted key: those that were written, then those that are built in."""
    found: dict[str, Setting] = {}
    for field in kind.model_fields:
        if table := fields.get(field):
            value = getattr(table.model, field)
            _add(found, f"{prefix}.{kebab(field)}", value, table, (kebab(field),))
    for field, info in kind.model_fields.items():
        default = info.default
        if field not in fields and default not in (PydanticUndefined, "", None):
            key = f"{prefix}.{kebab(field)}"
            found[key] = Setting(value=_written(field, default), place=None)
    return found


def job_settings(job: JobTable) -> dict[str, Setting]:
    """A job's settings, those from [defaults] included."""
    found = {}
    for field in sorted(type(job.model).model_fields, key=lambda f: f not in WHAT):
        value = getattr(job.model, field)
        if isinstance(value, Table):
            for inner in type(value).model_fields:
                given = inner in value.model_fields_set
                setting = Setting(
                    value=_written(inner, getattr(value, inner)),
                    place=job.at(field, kebab(inner)) if given else None,
                )
                if given or setting.value not in ("", [], 0, None, "0s"):
                    found[f"jobs.{job.name}.{kebab(field)}.{kebab(inner)}"] = setting
        elif job.written(field) or value not in ("", [], 0, None):
            place = job.at(field) if job.written(field) else None
            setting = Setting(value=_written(field, value), place=place)
            found[f"jobs.{job.name}.{kebab(field)}"] = setting
    return found


def _add(
    found: dict[str, Setting],
    key: str,
    value: object,
    table: Checked[TableT],
    path: tuple[str, ...],
) -> None:
    if isinstance(value, Table):
        inner = {kebab(f): getattr(value, f) for f in value.model_fields_set}
    elif isinstance(value, dict):
        inner = value
    else:
        field = path[-1].replace("-", "_")
        found[key] = Setting(value=_written(field, value), place=table.at(*path))
        return
    for name, item in inner.items():
        _add(found, f"{key}.{name}", item, table, (*path, name))


def _written(field: str, value: object) -> object:
    """A value as it is written in TOML; a secret is its source."""
    if isinstance(value, SecretSource):
        return {k: list(v) if k == "command" else v for k, v in value._asdict().items() if v}
    if isinstance(value, ReadData):
        return value.written()
    if isinstance(value, list):
        return [_written(field, item) for item in value]
    printer = PRINTERS.get(field)
    return printer(value) if printer and isinstance(value, int) else value


def as_toml(config: Config) -> str:
    """The effective configuration as TOML, every line with where it comes from."""
    lines: list[str] = []
    table = ""
    for key, setting in config.settings.items():
        group, name = split_key(key)
        if group != table:
            lines += ["", f"[{group}]"] if lines else [f"[{group}]"]
            table = group
        place = setting.place
        origin = f"{place.file}:{place.line}" if place else "built in"
        lines.append(f"{name} = {toml(setting.value)}  # {origin}")
    return "\n".join(lines) + "\n"


def split_key(key: str) -> tuple[str, str]:
    """The table and the key in it; tables with a name are repositories, jobs, dumps and the like."""
    parts = key.split(".")
    depth = 2 if parts[0] in NAMED else 1
    return ".".join(parts[:depth]), ".".join(parts[depth:])
