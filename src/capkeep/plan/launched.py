"""What cannot be had where no root parent starts the rooms; pure."""

from collections.abc import Iterator

from capkeep.config.model import Config
from capkeep.errors import ConfigError


def refuse(config: Config) -> None:
    """Raises ConfigError naming all of it."""
    if found := tuple(_impossible(config)):
        raise ConfigError(
            f'[host] start = "launcher": {"; ".join(found)}',
            hint='take it away, or write start = "doors" or start = "systemd"',
        )


def _impossible(config: Config) -> Iterator[str]:
    """A sentence for each."""
    for name in (
        *(f"dump {d.name}" for d in config.dumps),
        *(f"hook {h.name}" for h in config.hooks),
    ):
        yield f"{name} needs a user of its own, and nobody could become that user"
    if config.host.members_restore:
        yield "members-restore needs a room that other users reach"
    for target in config.targets:
        if target.way == "sftp":
            yield f'target {target.name}: by way = "sftp" a room makes a mount, as root alone could'
    for repository in config.repositories:
        if repository.owners != "metadata":
            yield f"repository {repository.name}: only root could give its files to their owners"
        if any(source.credential for source in repository.secrets):
            yield f"repository {repository.name}: systemd's credentials can be read by root alone"
    for channel in config.notify:
        if any(source.credential for _, source in channel.secrets):
            yield f"notify {channel.name}: systemd's credentials can be read by root alone"
