"""restic's REST protocol on pairs of pipes, in front of whatever store the repository is in."""

from collections.abc import Callable, Mapping
from typing import Final

from capkeep.plan.model import Access, Brief
from capkeep.rooms.handover import Ends
from capkeep.rooms.rest.front import Front
from capkeep.rooms.rest.making import Making
from capkeep.rooms.rest.pace import paced
from capkeep.rooms.rest.places import open_store
from capkeep.rooms.rest.server import Server
from capkeep.rooms.rest.sessions import Session, clean
from capkeep.rooms.service import (
    PREFLIGHT_SECONDS,
    Action,
    Rates,
    Stored,
    StoreError,
    explain,
    folder,
)

NAMES_TOLD: Final = 10_000  # less than the longest message


class RestService:
    """One session. `begin` comes before all that is below it."""

    def __init__(self, brief: Brief) -> None:
        """Starts helpers, reaches nothing. Raises StoreError."""
        self._brief = brief
        self._store = open_store(brief)

    def patience(self) -> float:
        return PREFLIGHT_SECONDS

    def preflight(self) -> None:
        self._store.preflight()

    def begin(self, rates: Rates, failed: Callable[[StoreError], None]) -> None:
        clean(folder(self._brief), self._store)
        self._session = Session(folder(self._brief))
        self._failed = failed
        access = self._brief.access or Access.APPEND
        self._making = Making(self._store, folder(self._brief))
        store = paced(self._store, rates)
        self._front = Front(store, self._session, access, failed, self._making)
        self._server = Server(self._front, failed)

    def serve(self, ends: Ends) -> None:
        self._server.serve(ends)

    def heard(self) -> Mapping[int, Action]:
        return {}

    def tick(self) -> None:
        """Each pair looks after itself."""

    def let_make(self) -> None:
        try:
            self._making.begin()
        except OSError as error:
            self._failed(explain(error, folder(self._brief)))

    def hold(self) -> list[str] | None:
        self._front.held.begin()
        try:
            names = [item.name for item in self._front.store.items("snapshots")]
        except StoreError as error:
            self._failed(error)
            return None
        return names if len(names) <= NAMES_TOLD else None

    def stop(self) -> None:
        self._server.close()

    def commit(self) -> None:
        self._front.held.carry_out(lambda: self._session.stands(self._store))

    def release(self) -> None:
        self._making.close()
        self._session.end(self._store)

    def stored(self) -> Stored:
        return Stored(self._front.stored, tuple(self._front.snapshots))

    def close(self) -> None:
        self._store.close()
