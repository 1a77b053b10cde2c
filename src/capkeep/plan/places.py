"""Where things are on this host: all of the plan that a command knows before it has read it.

Apart from the rest of the plan's values because `capkeep run` waits for every import.
"""

from enum import StrEnum
from typing import NamedTuple

RUN = "/run/capkeep"  # where a host's own sockets are
METRICS_FILE = "capkeep.prom"  # in the directory that [metrics] names


class Mode(StrEnum):
    """On whose behalf the rooms run."""

    SYSTEM = "system"  # a user of its own for every room, started by a root parent
    USER = "user"  # no root anywhere: one's own files, rooms in user namespaces


class Places(NamedTuple):
    """Where things are on this host."""

    config: str
    state: str
    cache: str
    log: str
    run: str

    @property
    def own_run(self) -> str:
        """Where sockets are on a host without a root parent: nobody could make RUN anew."""
        return self.state + "/run"

    @property
    def other_run(self) -> str:
        """Of a host: where sockets were if another than now started its rooms; "" below a prefix."""
        if not self.is_system:
            return ""
        return RUN if self.run == self.own_run else self.own_run

    @property
    def launchers(self) -> str:
        """The programs that start readers there; root's, and each for its group alone."""
        return self.state + "/launchers"

    def launcher(self, room: str) -> str:
        """The one of that reader."""
        return f"{self.launchers}/{room}"

    @property
    def is_system(self) -> bool:
        """Whether these are the host's own, not those of a prefix or a user."""
        return self.config == "/etc/capkeep"

    @property
    def plan(self) -> str:
        """The compiled plan; only root can write it."""
        return self.state + "/plan.json"

    @property
    def records(self) -> str:
        """The runner's own directory: the record database and job locks."""
        return self.state + "/records"

    @property
    def stamps(self) -> str:
        """A file for each job that says when its last complete backup began; anybody may read it."""
        return self.state + "/last-complete"

    def staging(self, dump: str) -> str:
        """The only directory that a dump's room can write; every backup of its jobs holds it."""
        return f"{self.state}/dumps/{dump}"

    @property
    def stage(self) -> str:
        """Empty directory over which a room's view is put together, in its own mount namespace."""
        return self.run + "/stage"

    @property
    def doors_log(self) -> str:
        """What doors say that were opened for a while; not in `log`, which the runner can write."""
        return self.run + "/doors.log"

    @property
    def rooms_log(self) -> str:
        """What rooms say, where that would otherwise go to a terminal."""
        return self.run + "/rooms.log"

    @property
    def runner_socket(self) -> str:
        """Where `capkeep run` asks."""
        return self.run + "/run.sock"

    @property
    def canary(self) -> str:
        """The file that every snapshot must hold."""
        return self.config + "/canary"

    @property
    def secrets(self) -> str:
        """Root-only directory of secret files, never visible in a room."""
        return self.config + "/secrets"


def for_starter(places: Places, *, root: bool) -> Places:
    """The same with sockets where whoever starts rooms has them: what is in /run goes with the machine."""
    if not places.is_system:
        return places
    return places._replace(run=RUN if root else places.own_run)
