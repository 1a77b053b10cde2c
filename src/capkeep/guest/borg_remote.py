"""Guards a borg repository on another machine, in a vault: speaks borg's protocol to both sides.

The server there is borg's own, as it is installed there. Nothing that a client sends is passed on:
what is understood and allowed is asked anew, and the server's answers are told anew. Towards who may
only add it keeps what `borg_guard` keeps: removals are not carried out, an id that is there keeps what
it has, the key is never written, unless with `make`, once, right after the repository was made. The
protocol has no word for "is this id there": each one is asked for with `get` before it is written, until
asking for the list of all would not have cost more.

The vault has said hello already (`engines.borg`), the answer to that is the first that comes.
Protocol: borg 1.2 and 1.4, borg/remote.py.

usage: borg_remote.py append|make|admin PATH FOLDER REPORT SERVER
"""

import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import client_pipes
from borg_guard import ADMIN, APPEND, FULL, MANIFEST, NONCES, UNTOLD, VERSIONS, Report
from borg_words import ANSWERS, NEEDED, WORDS_OF, Waiting, is_bytes

HELLO = 0  # the number of what the vault has asked
HELLO_SECONDS = 60  # with the login there
END_SECONDS = 10  # for the server to close the repository when its client has gone
TOLD_SECONDS = 5  # for whoever uses us to be told by the vault why it ends
READ = 1 << 20
WINDOW = 32 << 20  # bytes that wait for either side; one object has 20 MiB at most
REQUESTS = 1000  # that wait
MISSING_BYTES = 2000  # about: the server's answer that an id is not there has its traceback
ID_BYTES = 34
LISTED = 100_000  # ids in an answer; borg.constants.LIST_SCAN_LIMIT
WORDS = 2000  # characters of an error
OUT_OF_SPACE = (b"StorageQuotaExceeded", b"InsufficientFreeSpaceError")


Words = dict[str, Any]  # of a call
Said = dict[bytes, Any]  # by the server: b"r", or what is wrong
Take = Callable[[Any], None]


class Broken(Exception):
    """The conversation cannot go on: with the client, or with the server."""


class Lost(Broken):
    """The server has gone, or is none of borg's."""


class Denied(Exception):
    """What is asked for is not allowed, or no such question."""


class Guard:
    """One client, one connection to the server."""

    def __init__(
        self, report: Report, server: int, path: bytes, *, admin: bool, making: bool = False
    ) -> None:
        from borg.hashindex import NSIndex
        from borg.helpers import msgpack

        self._report, self._path, self._admin = report, path, admin
        self._allowed = ADMIN if admin else APPEND
        self._making = making  # it may still be made by this client
        self._new = False  # this client has made it, and sent no key yet
        self._pack, self._new_index = msgpack.packb, NSIndex
        self._from_client = msgpack.get_limited_unpacker("server")
        self._from_server = msgpack.get_limited_unpacker("client")
        self._to_client, self._to_server = Waiting(1), Waiting(server)
        self._server = server
        self._first = b""  # that the server has said
        self._version: tuple[int, ...] = ()
        self._requests: deque[tuple[int, str, Words]] = (
            deque()
        )  # not carried out yet: number, method, words
        self._held = 0  # bytes of data in them, and in those that are asked about
        self._asked: dict[int, Callable[[Said], None]] = {
            HELLO: self._hello
        }  # by number: who takes the answer
        self._number = HELLO
        # Ids that are asked for, to be written if they are not there.
        self._probes: set[bytes] = set()
        self._alone = False  # something is under way that nothing may come between
        self._size: int | None = None  # of the repository, in ids
        self._probed = 0
        self._known: Any = None  # all ids, once they have been listed
        self._opened = False
        self._stored = 0
        self._changed = False  # since the last commit
        self._gone = False  # the client

    # -- the conversation

    def serve(self) -> None:
        """Until the client hangs up, and the server has closed the repository. Raises Broken."""
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        os.set_blocking(self._server, False)
        hello = time.monotonic() + HELLO_SECONDS
        while not self._gone or self._to_server.size:
            if not self._version and time.monotonic() > hello:
                raise Lost(
                    f"no answer within {HELLO_SECONDS} seconds: look how long a login takes there"
                )
            self._turn()
        with socket.socket(fileno=os.dup(self._server)) as end:
            end.shutdown(socket.SHUT_WR)
        self._see_it_end()

    def _turn(self) -> None:
        """Move what can be moved."""
        poll = select.poll()
        waits = self._held + self._to_server.size > WINDOW or self._to_client.size > WINDOW
        full = waits or len(self._requests) > REQUESTS
        if not full and not self._gone:
            poll.register(0, select.POLLIN)
        if self._to_client.size:
            poll.register(1, select.POLLOUT)
        poll.register(
            self._server,
            (select.POLLIN if self._to_client.size <= WINDOW else 0)
            | (select.POLLOUT if self._to_server.size else 0),
        )
        found = dict(poll.poll(1000))
        if found.get(1):
            try:
                self._to_client.write()
            except OSError:
                self._leave()
        if found.get(self._server, 0) & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._hear_server()
        if found.get(0) and not self._gone:
            self._hear_client()
        self._carry_out()
        if self._to_server.size:
            try:
                self._to_server.write()
            except OSError as error:
                raise Lost(str(error)) from error

    def _see_it_end(self) -> None:
        """What it still says nobody hears; its lock is gone when it hangs up."""
        until = time.monotonic() + END_SECONDS
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        while (left := until - time.monotonic()) > 0 and poll.poll(left * 1000):
            try:
                if not os.read(self._server, READ):
                    return
            except BlockingIOError:
                continue
            except OSError:
                return

    # -- the client

    def _hear_client(self) -> None:
        data = os.read(0, READ)
        if not data:
            self._leave()
            return
        try:
            self._from_client.feed(data)
            for message in self._from_client:
                self._take(message)
        except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
            raise Broken(f"{type(error).__name__} in what the client says") from error
        except Exception as error:  # the kinds of msgpack's own differ by its version
            raise Broken(f"the client does not speak borg's protocol: {error}") from error

    def _leave(self) -> None:
        """The client has gone, and hears nothing any more."""
        self._gone = True
        self._to_client = Waiting(1)

    def _take(self, message) -> None:
        if isinstance(message, tuple):  # a client's greeting alone is in the older form
            _, number, method, _ = message
            if method != b"negotiate" or type(number) is not int:
                raise TypeError("not a greeting")
            self._requests.append((number, "negotiate", {}))
            return
        if not isinstance(message, dict) or type(message[b"i"]) is not int:
            raise TypeError("not a call by name")
        number, method, told = message[b"i"], message[b"m"].decode(), message[b"a"]
        try:
            words = self._understood(method, {key.decode(): told[key] for key in told})
        except Denied as refusal:
            self._refuse(number, *refusal.args)
            return
        self._held += len(words.get("data", b""))
        self._requests.append((number, method, words))

    def _understood(self, method: str, told: Words) -> Words:
        """What is said with a call. Raises Denied."""
        first_key = method == "save_key" and self._new
        if method not in WORDS_OF or (method not in self._allowed and not first_key):
            raise Denied("InvalidRPCMethod", method)
        kinds = WORDS_OF[method]
        words = {name: told[name] for name in kinds if name in told}
        if any(name in NEEDED and name not in words for name in kinds):
            raise Denied("PathNotAllowed", method)
        if not all(kinds[name](value) for name, value in words.items()):
            raise Denied("PathNotAllowed", method)
        if method == "open":
            self._check_open(words)
        elif not self._opened:
            raise Denied("PathNotAllowed", method)
        self._new = self._new and not first_key
        if "limit" in kinds:
            words["limit"] = min(words.get("limit") or LISTED, LISTED)
        return words

    def _check_open(self, words: Words) -> None:
        """One repository, once; only the keeper makes one, or who is let. Raises Denied."""
        told = self._path if words["path"] in UNTOLD else words["path"]
        other = os.path.normpath(told) != os.path.normpath(self._path)
        make = bool(words.get("create")) and not self._admin
        if self._opened or other or (make and not self._making):
            raise Denied("PathNotAllowed", os.fsdecode(words["path"])[:WORDS])
        self._opened = True
        words["path"] = self._path
        if not self._admin:
            # What is made is not to be append-only for its keeper too.
            words |= {"create": make, "lock": True, "append_only": not make}
            self._making = False

    def _refuse(self, number: int, kind: str, word: str) -> None:
        text = f"the vault does not allow: {word}"
        self._tell_client(number, {
            b"exception_class": kind, b"exception_args": [word], b"exception_short": [text],
            b"exception_trace": False,
        })  # fmt: skip

    def _answer(self, number: int, result: object = None) -> None:
        self._tell_client(number, {b"r": result})

    def _tell_client(self, number: int, said: Said) -> None:
        if not self._gone:
            self._to_client.add(self._pack({b"i": number, **said}))

    # -- carrying out, in the order in which it came

    def _carry_out(self) -> None:
        while self._requests and self._version and not self._alone:
            number, method, words = self._requests[0]
            written = method == "put" and not self._admin and words["id"] != MANIFEST
            if self._probes and not written:
                return
            if written and not self._ready_to_write():
                return
            self._requests.popleft()
            if method == "negotiate":
                greeting = (1, number, None, {"server_version": self._version})
                self._to_client.add(self._pack(greeting))
            elif written:
                self._add(number, words)
            elif method == "put":
                self._put(number, words)
            elif not self._admin and (
                method == "delete" or (method == "commit" and not self._changed)
            ):
                self._answer(number)  # a server that has nothing to commit fails at that
            elif method == "commit_nonce_reservation" and not self._admin:
                self._reserve(number, words)
            else:
                self._pass(number, method, words)

    def _pass(self, number: int, method: str, words: Words) -> None:
        if method == "commit" and not self._admin:
            words = {"save_space": False, "compact": False}
        if method in ("commit", "rollback"):
            self._changed = False
        if method == "rollback":
            self._known = self._size = None

        def end(said: Said) -> None:
            if method == "commit" and b"exception_class" not in said:
                self._report.tell(stored=self._stored)
                self._stored = 0
            if method == "open" and b"exception_class" not in said:
                self._new = bool(words.get("create"))
            self._relay(number, method, said)

        self._ask(method, words, end)

    def _put(self, number: int, words: Words) -> None:
        size = len(words["data"])

        def end(said: Said) -> None:
            self._stored += 0 if b"exception_class" in said else size
            self._relay(number, "put", said)

        self._held -= size
        self._changed = True
        self._ask("put", words, end)

    def _ready_to_write(self) -> bool:
        """Whether it is known how to find out what is there; asks for that first."""
        if self._known is not None:
            return True
        if self._size is None:
            self._between("__len__", {}, self._learn_size)
            return False
        if self._probed * MISSING_BYTES < self._size * ID_BYTES:
            return True
        if not self._probes:
            self._list_all(self._new_index(), None)
        return False

    def _learn_size(self, said: int) -> None:
        self._size = said

    def _list_all(self, index, marker: bytes | None) -> None:
        """All ids, page by page; nothing is written meanwhile."""

        def take(said: tuple[bytes, ...]) -> None:
            for one in said:
                index[one] = (0, 0)
            if len(said) < LISTED:
                self._known = index
            else:
                self._list_all(index, said[-1])

        self._between("list", {"limit": LISTED, "marker": marker}, take)

    def _add(self, number: int, words: Words) -> None:
        """Write what is not there yet; what is there keeps what it has."""
        one, size = words["id"], len(words["data"])
        if one in self._probes or (self._known is not None and one in self._known):
            self._held -= size
            self._answer(number)
            return
        if self._known is not None:
            self._known[one] = (0, 0)
            self._put(number, words)
            return

        def end(said: Said) -> None:
            self._probes.discard(one)
            if said.get(b"exception_class") == b"ObjectNotFound":
                self._put(number, words)
                return
            self._held -= size
            if b"exception_class" in said:
                self._relay(number, "put", said)
            else:
                self._answer(number)

        self._probed += 1
        self._probes.add(one)
        self._ask("get", {"id": one}, end)

    def _reserve(self, number: int, words: Words) -> None:
        """Numbers of encryption go forward alone: one that is used twice shows what it hides."""

        def take(said: int | None) -> None:
            free, upto, start = said or 0, words["next_unreserved"], words.get("start_nonce") or 0
            if upto is None or not free < upto <= max(free, start) + NONCES:
                self._refuse(number, "PathNotAllowed", "nonce")
            else:
                self._pass(number, "commit_nonce_reservation", words)

        self._between("get_free_nonce", {}, take, number)

    def _between(self, method: str, words: Words, take: Take, number: int | None = None) -> None:
        """Ask something of our own; nothing else is carried out before it is answered."""
        self._alone = True

        def end(said: Said) -> None:
            self._alone = False
            if b"exception_class" not in said:
                take(said[b"r"])
                return
            whose = number
            if whose is None:  # the one that waits cannot be carried out
                whose, _, told = self._requests.popleft()
                self._held -= len(told.get("data", b""))
            self._relay(whose, method, said)

        self._ask(method, words, end)

    # -- the server

    def _ask(self, method: str, words: Words, end: Callable[[Said], None]) -> None:
        self._number += 1

        def take(said: Said) -> None:
            right = ANSWERS.get(method)
            if b"exception_class" not in said:
                if right is not None and not right(said.get(b"r")):
                    raise Lost(f"its answer to {method} is none of borg's")
                said = {b"r": said[b"r"] if right is not None else None}
            end(said)

        self._asked[self._number] = take
        self._to_server.add(self._pack({b"i": self._number, b"m": method, b"a": words}))

    def _hear_server(self) -> None:
        try:
            data = os.read(self._server, READ)
        except BlockingIOError:
            return
        except OSError as error:
            raise Lost(str(error)) from error
        if not data:
            raise Lost("it has ended the connection")
        self._first = self._first or data[:200]
        try:
            self._from_server.feed(data)
            for message in self._from_server:
                self._hear(message)
        except Broken:
            raise
        except Exception as error:  # the kinds of msgpack's own differ by its version
            raise Lost(f"{error}{self._instead()}") from error

    def _hear(self, message) -> None:
        number = message.get(b"i") if isinstance(message, dict) else None
        take = self._asked.pop(number, None) if type(number) is int else None
        if take is None:
            raise Lost(f"it does not speak borg's protocol{self._instead()}")
        take(message)

    def _instead(self) -> str:
        """What it says instead of a greeting, such as what a shell's start-up files print."""
        return "" if self._version else f": {self._first.decode(errors='replace')[:200]!r}"

    def _hello(self, said: Said) -> None:
        told = said.get(b"r")
        version: Any = told.get(b"server_version") if isinstance(told, dict) else None
        if not isinstance(version, tuple) or not all(type(part) is int for part in version):
            self._outdated("older than 1.1" if told == 2 else "of no version that is known")
        if version[:2] not in VERSIONS:
            self._outdated(".".join(str(part) for part in version if part >= 0))
        self._version = version
        self._report.tell(open=True)

    def _outdated(self, what: str) -> NoReturn:
        text = (
            f"the server's borg is {what}: 1.2 or 1.4 is needed there; options.remote-path names"
            ' another one that it has, such as "borg-1.4"'
        )
        self._report.tell(failure="refused", text=text)
        raise Broken(text)

    def _relay(self, number: int, method: str, said: Said) -> None:
        """The server's answer, told anew."""
        kind = said.get(b"exception_class")
        if kind is None:
            self._answer(number, said[b"r"])
            return
        if not isinstance(kind, bytes):
            raise Lost("its errors are none of borg's")
        given, short = said.get(b"exception_args"), said.get(b"exception_short")
        words = [_short(word) for word in given[:4]] if isinstance(given, tuple) else []
        texts = [_short(text) for text in short[:4]] if isinstance(short, tuple) else []
        self._tell_vault(method, kind, words, b"\n".join(filter(is_bytes, texts)))
        self._tell_client(number, {
            b"exception_class": kind[:100], b"exception_args": words,
            b"exception_short": [text for text in texts if is_bytes(text)] or [kind[:100]],
            b"exception_trace": False,
        })  # fmt: skip

    def _tell_vault(self, method: str, kind: bytes, words: list[object], text: bytes) -> None:
        """What people can do something about, though borg would say it in its own way."""
        said = text.decode(errors="replace")
        if kind in OUT_OF_SPACE or (kind == b"OSError" and words[:1] and words[0] in FULL):
            self._report.tell(failure="no-space", text=f"there is no space on the server: {said}")
        elif kind == b"PathNotAllowed" and method == "open":
            where = os.fsdecode(self._path)
            text_ = f"the server does not let this key at {where}: see its authorized_keys"
            self._report.tell(failure="denied", text=text_)


def _short(value: object) -> object:
    if isinstance(value, bytes):
        return value[:WORDS]
    return value if isinstance(value, int) else None


def _until_hung_up() -> None:
    """Keep the client's pipes open until it has been ended for the reason that the vault tells."""
    until = time.monotonic() + TOLD_SECONDS
    os.set_blocking(0, False)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while (left := until - time.monotonic()) > 0 and poll.poll(left * 1000):
        try:
            if not os.read(0, READ):
                return
        except OSError:
            return


def main(access: str, path: str, report: Report, server: int) -> int:
    """Wait for one client, and serve it on standard input and output until it hangs up."""
    import borg

    if tuple(map(int, borg.__version__.split(".")[:2])) not in VERSIONS:
        text = f"borg {borg.__version__} is not supported: install borg 1.2 or 1.4"
        report.tell(failure="refused", text=text)
        return 1
    if not client_pipes.take():
        return 0
    try:
        admin, making = access == "admin", access == "make"
        Guard(report, server, os.fsencode(path), admin=admin, making=making).serve()
    except Lost as error:
        report.tell(lost=str(error))
        _until_hung_up()
        return 1
    except Broken as error:
        print(f"capkeep borg_remote: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    _, told_access, told_path, _, told_report, told_server = sys.argv
    raise SystemExit(main(told_access, told_path, Report(int(told_report)), int(told_server)))
