"""One policy whatever the place behind it: what an engine may do to a repository.

With APPEND an engine, however hostile, can add objects and read them; it cannot remove, replace or
change one. What is stored under a name has it as its sha256, packs on a local disk excepted. The
one thing that may be deleted is a lock that the engine made itself in this session. With READ it can
add such locks, and nothing else. Where a target's engine makes the repository, APPEND may add its one key
and its config, until there is a config (`making`). With ADMIN
objects may be deleted, one by one; nothing may ever be replaced, and no repository deleted.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from capkeep.errors import Failure
from capkeep.plan.model import Access
from capkeep.rooms.rest.held import Held
from capkeep.rooms.rest.making import Making
from capkeep.rooms.rest.names import CONFIG, KEYS, LOCKS, Name, is_hash, parse_target
from capkeep.rooms.rest.requests import Refusal, Request
from capkeep.rooms.rest.sessions import Session
from capkeep.rooms.rest.store import (
    AlreadyThere,
    NotThere,
    Store,
    StoreError,
    Upload,
)
from capkeep.rooms.rest.streams import Exchange

TYPE_V1: Final = "application/vnd.x.restic.rest.v1"
TYPE_V2: Final = "application/vnd.x.restic.rest.v2"
TYPE_BLOB: Final = "application/octet-stream"
# restic's packs are at most 128 MiB (restic, doc/047_tuning_backup_parameters.rst, "Pack Size";
# internal/repository MaxPackSize), and a pack may exceed that by one blob of at most 8 MiB and its
# header. An index holds at most 50,000 blobs (internal/repository/index, indexMaxBlobs), 10 MiB.
# A file listing an enormous snapshot's data is stored as blobs. So twice the largest pack.
DATA_LIMIT: Final = 256 << 20
INDEX_LIMIT: Final = 256 << 20  # restic before 0.12 wrote larger ones
SMALL_LIMIT: Final = 1 << 20  # config, keys, locks; a snapshot has its list of paths and excludes
LIMITS: Final = {"data": DATA_LIMIT, "index": INDEX_LIMIT, "snapshots": 16 << 20}
SNAPSHOTS_TOLD: Final = 16
KEEPERS: Final = "keys are made by the keeper alone"
STATUS: Final = {Failure.NO_SPACE: 507, Failure.DENIED: 500}


class Front:
    """Answers requests. Used by several threads at a time."""

    def __init__(
        self,
        store: Store,
        session: Session,
        access: Access,
        failed: Callable[[StoreError], None],
        making: Making,
    ) -> None:
        self.store = store
        self._making = making
        self._session = session
        self._access = access
        self._failed = failed
        self.held = Held(store)
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._open = False  # a repository is there, or was created in this session
        self.stored = 0  # bytes added
        self.snapshots: list[str] = []  # their names, if they are few

    def handle(self, exchange: Exchange) -> None:
        """Answer one request. Raises Gone."""
        request = exchange.request
        try:
            self._dispatch(request, exchange)
            self._failing_since = None
        except Refusal as refusal:
            self._answer_refusal(refusal, request, exchange)
        except StoreError as error:
            self._judge(error)
            answer = Refusal(STATUS.get(error.failure, 503), str(error))
            self._answer_refusal(answer, request, exchange)

    def _judge(self, error: StoreError) -> None:
        """A network that hiccups gets its time, as the engine tries again; the rest is told."""
        now = time.monotonic()
        with self._lock:
            since = self._failing_since = self._failing_since or now
        if error.failure is not Failure.UNREACHABLE or now - since >= self.store.patience:
            self._failed(error)

    def _answer_refusal(self, refusal: Refusal, request: Request, exchange: Exchange) -> None:
        """The body is taken in first: a client that is still sending may read it a second time."""
        if refusal.drain:
            exchange.drain()
        text = (refusal.text + "\n").encode()
        if request.method == "HEAD":
            exchange.answer(refusal.status, length=len(text))
        else:
            exchange.answer(refusal.status, text)

    def _dispatch(self, request: Request, exchange: Exchange) -> None:
        target = parse_target(request.target)
        if target is None:
            raise Refusal(404, "there is no such thing in a repository")
        if request.length > LIMITS.get(target.name.kind if target.name else "", SMALL_LIMIT):
            raise Refusal(413, "too large for an object of this kind", drain=False)
        if target.create:
            self._create(request, exchange)
        elif target.listing:
            self._list(target.listing, request, exchange)
        elif target.name is not None:
            self._object(target.name, request, exchange)

    def _object(self, name: Name, request: Request, exchange: Exchange) -> None:
        match request.method:
            case "HEAD":
                self._head(name, exchange)
            case "GET":
                self._get(name, request, exchange)
            case "POST":
                self._post(name, request, exchange)
            case "DELETE":
                self._delete(name, exchange)
            case _:
                raise Refusal(405, "no such method")

    # -- reading

    def _head(self, name: Name, exchange: Exchange) -> None:
        size = self.store.size(name)
        if size is None:
            raise Refusal(404, f"there is no {name.path}")
        if name.kind == CONFIG:
            self._open = True
        exchange.answer(200, length=size, kind=TYPE_BLOB)

    def _get(self, name: Name, request: Request, exchange: Exchange) -> None:
        first, last = request.range or (0, None)
        length = None if last is None else last - first + 1
        try:
            blob = self.store.read(name, first, length)
        except NotThere:
            raise Refusal(404, f"there is no {name.path}") from None
        try:
            if name.kind == CONFIG:
                self._open = True
            if request.range is None or blob.size == 0:
                exchange.answer(200, length=blob.length, kind=TYPE_BLOB)
            elif blob.length == 0:
                raise Refusal(416, f"{name.path} has {blob.size} bytes")
            else:
                part = f"bytes {first}-{first + blob.length - 1}/{blob.size}"
                exchange.answer(206, length=blob.length, kind=TYPE_BLOB, content_range=part)
            exchange.send_blob(blob, self._judge)
        finally:
            blob.close()

    def _list(self, kind: str, request: Request, exchange: Exchange) -> None:
        if request.method != "GET":
            raise Refusal(405, "a list can only be read")
        items = [i for i in self.store.items(kind) if is_hash(i.name)]
        if request.accept == TYPE_V2:
            plain: list[object] = [{"name": i.name, "size": i.size} for i in items]
            exchange.answer(200, _json(plain), kind=TYPE_V2)
        else:
            exchange.answer(200, _json([i.name for i in items]), kind=TYPE_V1)

    # -- adding

    def _create(self, request: Request, exchange: Exchange) -> None:
        if request.method != "POST":
            raise Refusal(405, "a repository can be created, and nothing else")
        if request.length:
            raise Refusal(400, "a repository is created without a body")
        if not self._makes_keys() and not self._making.is_open():
            raise Refusal(403, KEEPERS)
        self.store.create()
        self._open = self._makes_keys()  # whoever makes it but once goes by what is there
        exchange.answer(200)

    def _post(self, name: Name, request: Request, exchange: Exchange) -> None:
        made = not self._makes_keys() and name.kind in (KEYS, CONFIG) and self._making.admits(name)
        if not self._open and not made:
            self._open = self.store.size(Name(CONFIG)) is not None
            if not self._open:
                raise Refusal(404, "there is no repository")
        if name.kind != LOCKS:
            self._refuse_reader()
        if name.kind == KEYS and not made and not self._makes_keys():
            raise Refusal(403, KEEPERS)
        added = False
        try:
            if name.kind == LOCKS:
                self._post_lock(name, request, exchange)
            else:
                upload = self.store.write(name, request.length)
                self._receive(upload, name, request, exchange)
            added = True
        except AlreadyThere:
            raise Refusal(403, f"{name.path} exists; nothing is ever replaced") from None
        except NotThere as error:
            raise Refusal(404, str(error)) from None
        finally:
            if made:
                self._making.ended(name, added=added)
        with self._lock:
            self.stored += request.length
            if name.kind == "snapshots" and len(self.snapshots) < SNAPSHOTS_TOLD:
                self.snapshots.append(name.hash)
        exchange.answer(200)

    def _refuse_reader(self) -> None:
        if self._access is Access.READ:
            raise Refusal(403, "this repository may only be read here")

    def _makes_keys(self) -> bool:
        """An engine gives up when the keys that it tries first are nonsense: that would lock out all."""
        return self._access in (Access.ADMIN, Access.COPY)

    def _receive(self, upload: Upload, name: Name, request: Request, exchange: Exchange) -> None:
        """Take a body in. Its last piece is passed on only when the whole has the right sha256.

        A pack for a local disk is not looked at: hashing it would cost some percent of a large backup,
        and restic does not do that on a local disk either. Who could send a wrong one
        could as well send one of nonsense under its right name; engines authenticate what is in it.
        """
        digest = _sha256()
        left = request.length
        try:
            if name.kind == "data" and request.length and upload.pour:
                exchange.pour(upload.pour)
                upload.commit()
                return
            for piece in exchange.body():
                left -= len(piece)
                digest.update(piece)
                if not left:
                    _require(name, digest.hexdigest())
                upload.write(piece)
            if not request.length:
                _require(name, digest.hexdigest())
            upload.commit()
        finally:
            upload.abort()

    def _post_lock(self, name: Name, request: Request, exchange: Exchange) -> None:
        """A lock is noted before it is stored, and only if it is the sender's own to note."""
        if request.length > SMALL_LIMIT:
            raise Refusal(413, "too large for a lock", drain=False)
        content = b"".join(bytes(piece) for piece in exchange.body())
        digest = _sha256()
        digest.update(content)
        _require(name, digest.hexdigest())
        if self.store.size(name) is not None:
            raise AlreadyThere(name.path)
        if not self._session.note(name.hash):
            raise Refusal(403, "too many locks")
        try:
            upload = self.store.write(name, len(content))
            try:
                upload.write(memoryview(content))
                upload.commit()
            finally:
                upload.abort()
        except AlreadyThere:
            self._session.forget(name.hash)
            raise

    # -- removing

    def _delete(self, name: Name, exchange: Exchange) -> None:
        own = name.kind == LOCKS and self._session.owns(name.hash)
        if not own and (self._access is not Access.ADMIN or name.kind == CONFIG):
            raise Refusal(403, f"{name.path} may not be removed here")
        if self.held.takes(name, lock=own):
            exchange.answer(200)
            return
        found = self.store.remove(name)
        if own:
            self._session.forget(name.hash)
        if not found:
            raise Refusal(404, f"there is no {name.path}")
        exchange.answer(200)


class _Digest(Protocol):
    """What we use of a hash object."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more in."""

    def hexdigest(self) -> str:
        """The result."""


def _sha256() -> _Digest:
    """Imported when first needed: 4 ms, while the engine is busy with its password."""
    import hashlib

    return hashlib.sha256()


def _json(value: list[object] | list[str]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _require(name: Name, digest: str) -> None:
    if name.kind != CONFIG and digest != name.hash:
        raise Refusal(400, f"the content's sha256 is not {name.hash}")
