"""A repository behind somebody else's REST server: rest-server, or an rclone of ours.

Data streams through without being kept; the policy stands in front of it. Connections are kept and
used again. Imported only by vaults that need it: `http.client` costs 20 ms, `ssl` another 8.
"""

import base64
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from capkeep.errors import Failure
from capkeep.rooms.rest.names import CONFIG, Name
from capkeep.rooms.rest.store import AlreadyThere, Blob, Item, NotThere, StoreError, Upload

ACCEPT: Final = "application/vnd.x.restic.rest.v2"
CONNECT_SECONDS: Final = 10
STALL_SECONDS: Final = 90  # without a byte in either direction
# A network may hiccup: restic tries again for 15 minutes (0.17 and later, internal/backend/retry),
# with pauses of up to a minute, of which this lets it have the first ones.
PATIENCE_SECONDS: Final = 60.0
LIST_LIMIT: Final = 512 << 20  # bytes of a listing: 5 million packs
COPY: Final = 256 << 10
SPARE: Final = 6  # idle connections that are kept

Response = http.client.HTTPResponse


class Endpoint(NamedTuple):
    """Where a REST server is, and how to be let in."""

    host: str
    port: int
    path: str  # begins and ends with /
    tls: bool = False
    ca_file: str = ""
    user: str = ""
    password: str = ""
    socket_path: str = ""  # a unix socket instead of host and port

    @property
    def url(self) -> str:
        """For people; without the password."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}{self.path}"


class Behind(Protocol):
    """What stands behind an endpoint, and how its failures are told to people."""

    def ready(self) -> None:
        """Wait until it can be asked. Raises StoreError."""

    def explain(self, error: Exception) -> StoreError:
        """A connection's failure with a name."""

    def refused(self, status: int, text: str) -> StoreError:
        """An answer that means failure."""

    def close(self) -> None:
        """End it if it is ours."""


class Server:
    """A server that is not ours."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = endpoint.url

    def ready(self) -> None:
        """It is, or it is not."""

    def explain(self, error: Exception) -> StoreError:
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"the certificate of {self._url} is not trusted: {error.verify_message}"
        elif isinstance(error, TimeoutError):
            text = f"{self._url} does not answer"
        else:
            text = f"{self._url} cannot be reached: {error}"
        return StoreError(Failure.UNREACHABLE, text)

    def refused(self, status: int, text: str) -> StoreError:
        said = f"{self._url} answered {status}" + (f": {text}" if text else "")
        if status in (401, 403):
            return StoreError(Failure.DENIED, f"{said}; are the credentials right?")
        if status in (413, 507):
            return StoreError(Failure.NO_SPACE, said)
        return StoreError(Failure.UNREACHABLE, said)

    def close(self) -> None:
        """It is not ours to end."""


class RestStore:
    """A repository behind a REST server."""

    def __init__(self, endpoint: Endpoint, behind: Behind) -> None:
        self.endpoint = endpoint
        self.behind = behind
        self.patience = PATIENCE_SECONDS
        self._lock = threading.Lock()
        self._spare: list[http.client.HTTPConnection] = []
        self._tls: ssl.SSLContext | None = None
        self._headers = {"Accept": ACCEPT}
        if endpoint.user or endpoint.password:
            pair = f"{endpoint.user}:{endpoint.password}".encode()
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()

    # -- Store

    def preflight(self) -> None:
        """Connect, log in, ask for the config: that there is none is not a failure."""
        self.behind.ready()
        self.size(Name(CONFIG))

    def create(self) -> None:
        with self._call("POST", "?create=true", {"Content-Length": "0"}) as answer:
            answer.require(200)

    def size(self, name: Name) -> int | None:
        with self._call("HEAD", name.path) as answer:
            if answer.status == 404:
                return None
            answer.require(200)
            return answer.length()

    def items(self, kind: str) -> list[Item]:
        with self._call("GET", f"{kind}/") as answer:
            if answer.status == 404:
                return []
            answer.require(200)
            plain = answer.json()
        if not isinstance(plain, list):
            raise self._strange("a listing that is no list")
        return [self._item(kind, entry) for entry in plain]

    def read(self, name: Name, offset: int, length: int | None) -> Blob:
        last = "" if length is None else str(offset + length - 1)
        call = self._call("GET", name.path, {"Range": f"bytes={offset}-{last}"})
        try:
            return _RemotePart(call, name, offset)
        except BaseException:
            call.close()
            raise

    def write(self, name: Name, length: int) -> Upload:
        # The question also proves the connection alive, and the same one is used for the upload.
        if self.size(name) is not None:
            raise AlreadyThere(name.path)
        return _RemoteUpload(self, name, length)

    def remove(self, name: Name) -> bool:
        with self._call("DELETE", name.path) as answer:
            if answer.status == 404:
                return False
            answer.require(200)
            return True

    def close(self) -> None:
        with self._lock:
            for connection in self._spare:
                connection.close()
            self._spare.clear()
        self.behind.close()

    # -- how

    def _item(self, kind: str, entry: object) -> Item:
        if isinstance(entry, dict):
            name, size = entry.get("name"), entry.get("size")
            if isinstance(name, str) and isinstance(size, int):
                return Item(name, size)
        if isinstance(entry, str):  # version 1 of the protocol: names alone
            return Item(entry, self.size(Name(kind, entry)) or 0)
        raise self._strange("a listing with strange entries")

    def _strange(self, what: str) -> StoreError:
        return StoreError(Failure.UNREACHABLE, f"{self.endpoint.url} answered with {what}")

    def take(self, *, fresh: bool) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it has been used before. Connects lazily."""
        with self._lock:
            if self._spare and not fresh:
                return self._spare.pop(), True
        return self._connect(), False

    def give_back(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection whose last answer was read to its end."""
        with self._lock:
            if len(self._spare) < SPARE:
                self._spare.append(connection)
                return
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        """Connected within one limit, used with another. Raises StoreError."""
        at = self.endpoint
        connection: http.client.HTTPConnection
        try:
            if at.socket_path:
                connection = http.client.HTTPConnection("localhost")
                connection.sock = _connect_unix(at.socket_path)
            elif at.tls:
                connection = http.client.HTTPSConnection(
                    at.host, at.port, timeout=CONNECT_SECONDS, context=self._context()
                )
            else:
                connection = http.client.HTTPConnection(at.host, at.port, timeout=CONNECT_SECONDS)
            if not at.socket_path:
                connection.connect()
            connection.sock.settimeout(STALL_SECONDS)
        except OSError as error:
            raise self.behind.explain(error) from error
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self.endpoint.ca_file or None)
        return self._tls

    def request_head(self, name: str, more: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """The target and header of a request for something in the repository."""
        return self.endpoint.path + name, {**self._headers, **more}

    def _call(self, method: str, name: str, more: Mapping[str, str] | None = None) -> "_Call":
        """Ask something that may be asked twice: a kept connection may have gone stale."""
        target, headers = self.request_head(name, more or {})
        for fresh in (False, True):
            connection, used = self.take(fresh=fresh)
            try:
                connection.request(method, target, headers=headers)
                return _Call(self, connection, connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if not used or isinstance(error, TimeoutError):
                    raise self.behind.explain(error) from error
        raise AssertionError("a fresh connection was not used before")


def _connect_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_SECONDS)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


class _Call:
    """One answer; its connection is kept if the answer was read to the end."""

    def __init__(
        self, store: RestStore, connection: http.client.HTTPConnection, response: Response
    ) -> None:
        self._store = store
        self._connection = connection
        self.response = response
        self.status = response.status

    def __enter__(self) -> "_Call":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read a short rest, and keep the connection; throw it away otherwise."""
        with suppress(OSError, http.client.HTTPException):
            if not self.response.isclosed():
                self.response.read(COPY)
        if self.response.isclosed() and not self.response.will_close:
            self._store.give_back(self._connection)
        else:
            self._connection.close()

    def require(self, *statuses: int) -> None:
        """Raises StoreError for any other status."""
        if self.status in statuses:
            return
        text = b""
        with suppress(OSError, http.client.HTTPException):
            text = self.response.read(300)
        raise self._store.behind.refused(self.status, text.decode(errors="replace").strip())

    def length(self) -> int:
        """The announced length. Raises StoreError."""
        text = self.response.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdigit()):
            raise StoreError(Failure.UNREACHABLE, f"{self._store.endpoint.url} told no length")
        return int(text)

    def json(self) -> object:
        """The whole answer. Raises StoreError."""
        try:
            return json.loads(self.response.read(LIST_LIMIT))
        except (OSError, http.client.HTTPException) as error:
            raise self._store.behind.explain(error) from error
        except ValueError as error:
            raise StoreError(
                Failure.UNREACHABLE, f"{self._store.endpoint.url} is no REST server for restic"
            ) from error

    def read_into(self, buffer: memoryview) -> int:
        """The next bytes of the answer. Raises StoreError."""
        try:
            return self.response.readinto(buffer)
        except (OSError, http.client.HTTPException) as error:
            raise self._store.behind.explain(error) from error


class _RemotePart:
    """A part of a remote object on its way through."""

    def __init__(self, call: _Call, name: Name, offset: int) -> None:
        self._call = call
        self._name = name
        if call.status == 404:
            raise NotThere(name.path)
        if call.status == 416:
            self.size, self.length = offset, 0
            return
        call.require(200, 206)
        self.length = call.length()
        self.size = self.length
        if call.status == 206:
            _, _, total = call.response.headers.get("Content-Range", "").partition("/")
            self.size = int(total) if total.isascii() and total.isdigit() else offset + self.length
        elif offset:
            raise StoreError(Failure.UNREACHABLE, "the server cannot send a part of an object")

    def read_into(self, buffer: memoryview) -> int:
        got = self._call.read_into(buffer)
        if not got:
            raise StoreError(Failure.UNREACHABLE, f"{self._name.path} ended early")
        return got

    def close(self) -> None:
        self._call.close()


class _RemoteUpload:
    """An upload that streams through. Cut off before its end, the server throws it away."""

    pour = None

    def __init__(self, store: RestStore, name: Name, length: int) -> None:
        self._store = store
        self._name = name
        self._connection, _ = store.take(fresh=False)
        self._finished = False
        target, headers = store.request_head(name.path, {
            "Content-Type": "application/octet-stream", "Content-Length": str(length),
        })  # fmt: skip
        try:
            self._connection.putrequest("POST", target, skip_accept_encoding=True)
            for field, value in headers.items():
                self._connection.putheader(field, value)
            self._connection.endheaders()
        except (OSError, http.client.HTTPException) as error:
            self.abort()
            raise store.behind.explain(error) from error

    def write(self, data: memoryview) -> None:
        try:
            self._connection.send(data)
        except (OSError, http.client.HTTPException) as error:
            self._early_answer(error)

    def _early_answer(self, error: Exception) -> None:
        """A server that refuses does so before the end; what it said is better than a reset."""
        with suppress(OSError, http.client.HTTPException):
            self._connection.sock.settimeout(2)
            self._judge(self._connection.getresponse())
        raise self._store.behind.explain(error) from error

    def _judge(self, response: Response) -> None:
        text = response.read(300).decode(errors="replace").strip()
        if response.status == 200:
            return
        if response.status == 403 and self._store.size(self._name) is not None:
            raise AlreadyThere(self._name.path)
        raise self._store.behind.refused(response.status, text)

    def commit(self) -> None:
        try:
            response = self._connection.getresponse()
            self._judge(response)
        except (OSError, http.client.HTTPException) as error:
            raise self._store.behind.explain(error) from error
        self._finished = True
        if response.isclosed() and not response.will_close:
            self._store.give_back(self._connection)
        else:
            self._connection.close()

    def abort(self) -> None:
        if not self._finished:
            self._connection.close()
