"""The rooms in which members of the group are given what they could read themselves."""

from typing import Final

from capkeep.config.model import Config, RepositoryConfig
from capkeep.engines import ENGINES, GIVING
from capkeep.plan import pull
from capkeep.plan.model import Door, Places, Room, RoomKind

VISITS: Final = 4  # of each user at a time


def wanted(config: Config, repository: RepositoryConfig) -> bool:
    """Whether a repository has such a room.

    None that holds files of another host's users; and none where a member who looks would keep a lock,
    and so everybody from backups.
    """
    return (
        config.host.members_restore
        and repository.engine in GIVING
        and not pull.is_foreign(config, repository.name)
        and (
            repository.location.scheme == "local" or ENGINES[repository.engine].traits.unlocked_afar
        )
    )


def room(viewer: Room, places: Places, group: int, wire_group: int) -> Room:
    """A viewer for everybody of a group, who is told who asks; with a cache of its own.

    It runs as the viewers' user, with the group that reaches a repository's vault under systemd 252.
    """
    name = f"{RoomKind.GIVER}-{viewer.repository}"
    grant = viewer.grant._replace(
        gid=wire_group,
        write=(f"{places.cache}/{name}", *viewer.grant.write[1:]),
        callers=True,
    )
    door = Door(f"{places.run}/{name}.sock", 0, group, 0o660, VISITS)
    return viewer._replace(name=name, kind=RoomKind.GIVER, grant=grant, door=door)
