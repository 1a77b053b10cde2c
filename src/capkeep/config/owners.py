"""Whom the files of a mirror belong to, checked against the engine and the mode."""

from capkeep.config import syntax
from capkeep.config.mistakes import Collector
from capkeep.config.sources import Owner
from capkeep.config.validate import Checked
from capkeep.engines.base import Traits


def check_owners(
    table: Checked[syntax.Repository], traits: Traits, owner: Owner, collector: Collector
) -> None:
    """Tell the collector where files cannot be given to their owners."""
    owners = table.model.owners
    if owners == "metadata":
        return
    place = table.at("owners")
    if not traits.owners_on_disk:
        collector.mistake(
            place,
            f"{traits.program} keeps owners in its own files: there is no mirror that could have them",
            "take it away",
        )
    elif owner.user_mode:
        collector.mistake(
            place,
            f"only root can give files to their owners, and no room has a capability here: {owners!r}"
            " is for the system's capkeep",
            'take it away, or write owners = "metadata"',
        )
