"""The half that sees the files: a reader's, a restorer's or anybody's who only looks.

It is what a room starts as the engine. It hands a pair of pipes over to the vault, which starts the
other half (guest/rdiff/store.py), asks for one thing, and says as lines of JSON what comes of it;
`engines/rdiff.py` reads them. No code of rdiff-backup's runs here, and nothing that the other half
says is more than a value.
"""

import _socket
import errno
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

from capkeep.errors import EXIT_PARTIAL
from capkeep.guest.rdiff.wire import (
    BATCH,
    PIECE,
    Gone,
    Meta,
    Pipes,
    Refused,
    receive_object,
    send,
    send_error,
    send_piece,
    text,
    to_plain,
)
from capkeep.rooms.rdiff import walk

HEAVY: Final = 4 << 20  # bytes of attributes in one answer
WINDOW: Final = 8000  # files that the other half may still ask for; it lags by 500 at most
PROGRESS_SECONDS: Final = 0.25
CLOCK_TICK: Final = 0.02  # seconds that times of files may be behind (CONFIG_HZ)
CHANGED_ERRNO: Final = 116  # ESTALE: there is no number for "something else by now"


def main() -> int:
    """The program: one request, which is its argument."""
    spec = json.loads(sys.argv[1])
    end = _reach(spec.pop("handover"))
    try:
        if spec["do"] == "backup":
            return _Backup(spec, end).run()
        if spec["do"] == "restore":
            from capkeep.rooms.rdiff.restoring import restore

            return restore(spec, end, say, pass_on)
        return _ask(spec, end)
    except Gone as error:
        return _said_last(end) or failed("interrupted", f"the repository's half has ended: {error}")
    except Refused as error:
        return failed("refused", f"the repository's half said what it must not say: {error}")


def say(**event: object) -> None:
    """One line for whoever started this."""
    print(json.dumps(event, separators=(",", ":")), flush=True)


def failed(kind: str, why: str) -> int:
    """The last line, where those who read a listing look for trouble; and the exit code."""
    print(json.dumps({"failed": {"kind": kind, "text": why}}), file=sys.stderr, flush=True)
    return 1


def _said_last(end: Pipes) -> int:
    """Whoever leaves while a file is sent may have said why; 0 if not."""
    with suppress(Gone, Refused):
        while True:
            found = receive_object(end).get("failed")
            if found:
                return pass_on(found)
    return 0


def pass_on(found: object) -> int:
    """The other half's own word for why it failed. Raises Refused."""
    if not isinstance(found, dict):
        raise Refused("a failure without a name")
    return failed(str(found.get("kind")), str(found.get("text"))[:4000])


def _reach(handover: int) -> Pipes:
    """The other half, at the far end of two pipes, which are handed over as a relay would."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    ends = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (theirs_in, theirs_out))
    sock = _socket.socket(fileno=handover)
    sock.sendmsg([b"p"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, ends)])
    os.close(theirs_in)
    os.close(theirs_out)
    return Pipes(ours_in, ours_out)


def _ask(spec: dict[str, object], end: Pipes) -> int:
    """Whatever needs no files: pass on what is answered."""
    send(end, spec)
    while True:
        answer = receive_object(end)
        if "failed" in answer:
            return pass_on(answer["failed"])
        if "end" in answer:
            say(end=answer["end"])
            return 0
        entries = answer.get("entries")
        if isinstance(entries, list):
            for entry in entries:
                say(entry=entry)
        else:
            say(**answer)


class _Backup:
    """One conversation about the files of a job."""

    def __init__(self, spec: dict[str, object], end: Pipes) -> None:
        self._spec, self._end = spec, end
        root = os.getcwdb()
        self._root = b"" if root == b"/" else root
        self._choice = walk.Choice(
            root=self._root,
            include=tuple(os.fsencode(p).rstrip(b"/") for p in _texts(spec.get("include"))),
            exclude=_texts(spec.get("exclude")),
            one_file_system=spec.get("one_file_system") is True,
        )
        self._watch = {os.fsencode(p) for p in _texts(spec.get("watch"))}
        self._nodes = walk.nodes(self._choice, self._trouble)
        self._window: dict[str, Meta] = {}
        self._told: set[str] = set()
        self._files = self._bytes = 0
        self._shown = 0.0
        self._pace = _Pace(spec.get("rate"))

    def run(self) -> int:
        """Answer what the other half asks until it is done."""
        wanted = ("do", "host", "tags", "dry_run")
        send(self._end, {k: v for k, v in self._spec.items() if k in wanted})
        while True:
            ask = receive_object(self._end)
            if ask.get("ask") == "more":
                self._more()
            elif ask.get("ask") == "send":
                for path in _texts(ask.get("paths")):
                    self._send(path)
            elif "failed" in ask:
                return pass_on(ask["failed"])
            elif "done" in ask:
                return self._done(ask["done"])
            else:
                raise Refused("it asks for something unknown")

    def _more(self) -> None:
        batch: list[dict[str, object]] = []
        size = 0
        for meta in self._counted(islice(self._nodes, BATCH)):
            if (attributes := _weight(meta)) > HEAVY:
                error = OSError(errno.E2BIG, "has more attributes than can be kept")
                self._trouble(b"/" + b"/".join(meta.where), error)
                meta = meta._replace(xattrs=())  # noqa: PLW2901
            batch.append(to_plain(meta))
            size += attributes
            if size > HEAVY:
                break
        send(self._end, batch)

    def _counted(self, metas: Iterator[Meta]) -> Iterator[Meta]:
        for meta in metas:
            path = b"/" + b"/".join(meta.where)
            if meta.kind == "reg":
                self._window[text(path[1:])] = meta
                self._bytes += meta.size
            self._files += 1
            if path in self._watch:
                say(listed=text(path))
            yield meta
        for name in list(islice(self._window, max(0, len(self._window) - WINDOW))):
            del self._window[name]
        now = time.monotonic()
        if now - self._shown > PROGRESS_SECONDS and self._files:
            self._shown = now
            say(progress=[self._files, self._bytes])

    def _send(self, name: str) -> None:
        """A file's content, as long as it was when it was listed, or why there is none."""
        meta = self._window.get(name)
        if meta is None:
            raise Refused("it asks for a file that it was not told of")
        path = b"/" + b"/".join(meta.where)
        _await_end_of(meta.mtime)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self._root + path, flags)
        except OSError as error:
            self._trouble(path, error)
            send_error(self._end, error.errno or 5)
            return
        try:
            self._stream(fd, meta, path)
        finally:
            os.close(fd)

    def _stream(self, fd: int, meta: Meta, path: bytes) -> None:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            self._trouble(path, OSError(CHANGED_ERRNO, "is no file any more"), changed=True)
            send_error(self._end, CHANGED_ERRNO)
            return
        left = meta.size
        try:
            while left and (piece := os.read(fd, min(left, PIECE))):
                send_piece(self._end, piece)
                self._pace.spend(len(piece))
                left -= len(piece)
        except OSError as error:
            self._trouble(path, error)
            send_error(self._end, error.errno or 5)
            return
        if left:
            self._trouble(path, OSError(CHANGED_ERRNO, "became shorter meanwhile"), changed=True)
            send_error(self._end, CHANGED_ERRNO)
            return
        send_piece(self._end, b"")
        after = os.fstat(fd)
        if (after.st_size, after.st_mtime_ns // 10**9) != (meta.size, meta.mtime):
            say(warning=f"{text(path)} changed while it was read; what it was when listed is kept")

    def _trouble(self, path: bytes, error: OSError, *, changed: bool = False) -> None:
        name = text(path)
        if name in self._told:
            return  # once is enough, whatever else is wrong with it
        self._told.add(name)
        say(unreadable=name, errno=0 if changed else error.errno, detail=error.strerror or "",
            changed=changed)  # fmt: skip

    def _done(self, done: object) -> int:
        """The other half's account; what it could not keep is told as well, unless that was said."""
        if not isinstance(done, dict):
            raise Refused("expected an account")
        for path in _texts(done.get("unkept")):
            if path not in self._told:
                self._told.add(path)
                say(unreadable=path, errno=0, detail="changed while it was read", changed=True)
        for warning in _texts(done.get("warnings")):
            say(warning=warning)
        say(summary=done.get("summary"))
        return EXIT_PARTIAL if self._told else 0


def _await_end_of(second: int) -> None:
    """What is written once a file has been read must be told from it by its time, in seconds."""
    now = time.time()
    if int(now) == second:
        time.sleep(second + 1 + CLOCK_TICK - now)


def _weight(meta: Meta) -> int:
    """Bytes that its attributes take on the wire, roughly."""
    return sum(2 * len(value) for _, value in meta.xattrs)


class _Pace:
    """No more bytes a second than that, on average since the first."""

    def __init__(self, rate: object) -> None:
        self._rate = rate if isinstance(rate, int) else 0
        self._spent, self._begun = 0, time.monotonic()

    def spend(self, size: int) -> None:
        """Wait until so much is allowed."""
        if self._rate:
            self._spent += size
            time.sleep(max(0.0, self._begun + self._spent / self._rate - time.monotonic()))


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise Refused("expected a list of texts")
    return tuple(value)
