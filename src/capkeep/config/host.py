"""The tables `[host]` and `[limits]` as values."""

import pwd
from collections.abc import Mapping

from capkeep.config import syntax
from capkeep.config.model import HostConfig, LimitsConfig
from capkeep.config.validate import Checked


def host_of(fields: Mapping[str, Checked[syntax.Host]]) -> HostConfig:
    """Names of users, and who starts rooms."""
    default = syntax.Host()
    prefix = fields["user_prefix"].model.user_prefix if "user_prefix" in fields else ""
    prefix = prefix or default.user_prefix
    group = fields["group"].model.group if "group" in fields else ""
    start = fields["start"].model.start if "start" in fields else default.start
    missing = fields["accept_missing"].model.accept_missing if "accept_missing" in fields else []
    return HostConfig(
        user_prefix=prefix,
        group=group or prefix,
        start=start,
        accept_missing=tuple(dict.fromkeys(missing)),
        members_restore=(
            "members_restore" in fields and fields["members_restore"].model.members_restore
        ),
        launcher_mark=(
            fields["launcher_mark"].model.launcher_mark
            if "launcher_mark" in fields
            else default.launcher_mark
        ),
    )


def launching_user(host: HostConfig) -> int:
    """The user that secrets are given to where launchers start readers; -1 for none.

    Where something else starts them by now, `apply` takes them back, and must be able to read this.
    """
    try:
        return pwd.getpwnam(host.user_prefix).pw_uid
    except KeyError:
        return -1  # it is still to be made, and nothing can have been given to it


def limits_of(fields: Mapping[str, Checked[syntax.Limits]]) -> LimitsConfig:
    """The limits that are written."""
    return LimitsConfig(
        memory_bytes=fields["memory"].model.memory if "memory" in fields else None,
        processes=fields["processes"].model.processes if "processes" in fields else None,
        free_space_bytes=fields["free_space"].model.free_space if "free_space" in fields else None,
    )
