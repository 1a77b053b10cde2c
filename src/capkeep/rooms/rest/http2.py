"""The server's side of HTTP/2 on a pair of pipes, as much as restic speaks and not a byte more.

RFC 9113, with prior knowledge and without TLS. One thread reads frames and feeds streams; each
stream has a thread of its own. Whoever breaks the protocol, or asks too much of it, is told so
(GOAWAY), and that was the connection. Written here because a vault imports nothing that is not
Python's own, and because no library leaves what is uploaded to the kernel to move.
"""

import os
import sys
import threading
from typing import Final

from capkeep.kernel.pipes import enlarge
from capkeep.rooms.rest import frames
from capkeep.rooms.rest.ends import Gone, Inlet, Outlet, Times
from capkeep.rooms.rest.frames import Code, Head, Kind, Mistake, Setting
from capkeep.rooms.rest.front import Front
from capkeep.rooms.rest.hpack import LIST_LIMIT, encode
from capkeep.rooms.rest.incoming import FRAME_SIZE, Incoming
from capkeep.rooms.rest.requests import Refusal, parse_request
from capkeep.rooms.rest.streams import STREAM_WINDOW, Exchange, Stream, Windows, answer_head

MAX_STREAMS: Final = 32  # restic uses 5 unless told otherwise (-o rclone.connections)
CONNECTION_WINDOW: Final = frames.WINDOW_LIMIT
GIVE_BACK: Final = 1 << 28  # bytes, before the connection's window is filled up again


class Pair:
    """A connection. Owns both descriptors; `run` it in a thread, `end` it from any."""

    def __init__(self, incoming: int, outgoing: int, front: Front, times: Times) -> None:
        self._front = front
        self._times = times
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._outlet = Outlet(outgoing, self._end, times.stall)
        self._inlet = Inlet(incoming, self._end, self._outlet, times.stall)
        for fd in (incoming, outgoing):
            enlarge(fd)
        self._windows = Windows(times.stall)
        self._frames = Incoming(self._inlet, times)
        self._streams: dict[int, Stream] = {}
        self._exchanges: dict[int, Exchange] = {}  # of requests whose thread is not started yet
        self._workers: dict[int, threading.Thread] = {}
        self._last = 0  # the newest stream
        self._received = 0  # bytes of bodies that the connection's window has not been given back

    def end(self) -> None:
        """Let it end soon."""
        os.eventfd_write(self._end, 1)

    def run(self) -> None:
        """Serve until the engine leaves, breaks the protocol, or is told to."""
        try:
            self._hello()
            while True:
                self._frame()
        except Mistake as mistake:
            self._farewell(mistake)
        except (Gone, OSError):
            pass  # there is nobody left to tell
        finally:
            self._close()

    def _hello(self) -> None:
        wanted = {
            Setting.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            Setting.MAX_FRAME_SIZE: FRAME_SIZE,
            Setting.MAX_HEADER_LIST_SIZE: LIST_LIMIT,
        }
        self._outlet.post(
            frames.settings(wanted) + frames.window_update(0, CONNECTION_WINDOW - frames.WINDOW)
        )
        self._frames.preface()
        head = self._frames.head(idle=self._times.hello)
        if head.kind != Kind.SETTINGS or head.flags & frames.ACK:
            raise Mistake(Code.PROTOCOL_ERROR, "no settings first")
        self._settings(head, self._frames.content(head))

    def _farewell(self, mistake: Mistake) -> None:
        try:
            self._outlet.put([frames.goaway(self._last, mistake.code, str(mistake))])
        except Gone:
            return

    def _close(self) -> None:
        self.end()
        self._inlet.close()
        self._windows.cut(self._streams.values())
        for stream in self._streams.values():
            stream.close_into()
        self._outlet.close()
        for worker in self._workers.values():
            worker.join()

    def forget(self) -> None:
        """After its run, and when nobody will `end` it any more."""
        os.close(self._end)

    # -- frames

    def _frame(self) -> None:
        """Take in the next frame, whenever it comes."""
        head = self._frames.head(idle=None)
        match head.kind:
            case Kind.DATA:
                self._data(head)
            case Kind.HEADERS:
                self._headers(head)
            case Kind.SETTINGS:
                self._settings(head, self._frames.content(head))
            case Kind.WINDOW_UPDATE:
                self._window(head, frames.parse_window_update(self._frames.content(head)))
            case Kind.RST_STREAM:
                self._frames.content(head)
                self._reset(head.stream)
            case Kind.PING:
                content = self._frames.content(head)
                self._frames.count_useless()
                if not head.flags & frames.ACK:
                    self._outlet.post(frames.frame(Kind.PING, frames.ACK, 0, content))
            case Kind.GOAWAY:
                self._frames.content(head)
                self._frames.count_useless()  # what is under way is finished, and then it leaves
            case Kind.PUSH_PROMISE | Kind.CONTINUATION:
                raise Mistake(Code.PROTOCOL_ERROR, "a frame that has no place here")
            case _:  # priorities, and what other peers know of: RFC 9113, 5.5
                self._frames.count_useless()
                self._inlet.drop(head.length)

    def _settings(self, head: Head, content: bytes) -> None:
        self._frames.count_useless()
        if head.length % 6 or (head.flags & frames.ACK and head.length):
            raise Mistake(Code.FRAME_SIZE_ERROR, "settings of a wrong size")
        if head.flags & frames.ACK:
            return
        for name, value in frames.parse_settings(content):
            if name == Setting.INITIAL_WINDOW_SIZE:
                self._windows.set_initial(value, self._streams.values())
            elif name == Setting.MAX_FRAME_SIZE:
                self._windows.frame = value
        self._outlet.post(frames.frame(Kind.SETTINGS, frames.ACK, 0))

    def _window(self, head: Head, size: int) -> None:
        if not head.stream:
            self._windows.grow(None, size)
            return
        self._refuse_idle(head.stream)
        stream = self._streams.get(head.stream)
        if stream is not None:
            self._windows.grow(stream, size)

    def _refuse_idle(self, number: int) -> None:
        """Raises Mistake for a stream that was never opened."""
        if number > self._last or not number % 2:
            raise Mistake(Code.PROTOCOL_ERROR, "a stream that was never opened")

    def _reset(self, number: int) -> None:
        self._refuse_idle(number)
        self._frames.count_useless()
        stream = self._streams.get(number)
        if stream is not None:
            self._windows.cut([stream])
            stream.done = stream.done or number in self._exchanges  # it has not been started
            stream.ended = True
            stream.close_into()

    # -- streams

    def _headers(self, head: Head) -> None:
        fields = self._frames.fields(head)
        if not head.stream % 2 or head.stream <= self._last:
            raise Mistake(Code.PROTOCOL_ERROR, "not a new stream, or trailers")
        self._last = head.stream
        self._sweep()
        if len(self._streams) >= 2 * MAX_STREAMS:  # those that were given up may still have threads
            self._frames.count_useless()
            self._outlet.post(frames.reset(head.stream, Code.REFUSED_STREAM))
            return
        ended = bool(head.flags & frames.END_STREAM)
        stream = Stream(head.stream, self._windows.initial)
        try:
            request = parse_request(fields, ended=ended)
        except Refusal as refusal:
            self._frames.count_useless()
            self._refuse(stream, refusal)
            return
        stream.ended = ended
        stream.declared = request.length
        if request.length:
            stream.open_body()
        exchange = Exchange(stream, request, self._outlet, self._windows, self._times)
        self._streams[stream.number] = stream
        self._exchanges[stream.number] = exchange
        if request.sized:
            self._start(stream)

    def _start(self, stream: Stream) -> None:
        exchange = self._exchanges.pop(stream.number)
        worker = threading.Thread(target=self._serve, args=(exchange,), daemon=True)
        try:
            worker.start()
        except RuntimeError as error:  # the room's limit
            raise Mistake(Code.ENHANCE_YOUR_CALM, "too many at a time") from error
        self._workers[stream.number] = worker

    def _refuse(self, stream: Stream, refusal: Refusal) -> None:
        """Answer a request that nobody serves."""
        text = (refusal.text + "\n").encode()
        block = encode(refusal.status, "text/plain", len(text))
        self._outlet.post(
            answer_head(stream.number, block, last=True)
            if stream.send_window < len(text)
            else answer_head(stream.number, block, last=False)
            + frames.frame(Kind.DATA, frames.END_STREAM, stream.number, text)
        )
        self._outlet.post(frames.reset(stream.number, Code.NO_ERROR))

    def _sweep(self) -> None:
        """Forget the streams that are over on both sides."""
        for number, stream in list(self._streams.items()):
            if stream.done and (stream.ended or stream.got < stream.declared):
                stream.close_into()
                del self._streams[number]
                self._workers.pop(number, None)
                self._exchanges.pop(number, None)

    def _data(self, head: Head) -> None:
        left = head.length
        padding = 0
        if head.flags & frames.PADDED:
            padding = self._frames.content(head._replace(length=1))[0] if left else 0
            left -= 1
            if padding > left:
                raise Mistake(Code.PROTOCOL_ERROR, "more padding than content")
            left -= padding
        self._account(head.length)
        self._refuse_idle(head.stream)
        stream = self._streams.get(head.stream)
        if stream is None or stream.reset:
            self._frames.count_useless()
            self._inlet.drop(left + padding)
            return
        if stream.ended:
            raise Mistake(Code.STREAM_CLOSED, "a body that goes on after its end")
        if not left:
            self._frames.count_useless()
        stream.received += head.length
        if stream.received > stream.granted:
            raise Mistake(Code.FLOW_CONTROL_ERROR, "more than was asked for")
        self._take_in(stream, left)
        self._inlet.drop(padding)
        if head.flags & frames.END_STREAM:
            self._ended(stream)

    def _account(self, size: int) -> None:
        """The connection's window is so large that it is the streams' windows that count."""
        self._received += size
        if self._received > CONNECTION_WINDOW:
            raise Mistake(Code.FLOW_CONTROL_ERROR, "more than was asked for")
        if self._received > GIVE_BACK:
            self._outlet.post(frames.window_update(0, self._received))
            self._received = 0

    def _take_in(self, stream: Stream, size: int) -> None:
        stream.got += size
        if stream.got > stream.declared:
            raise Mistake(Code.PROTOCOL_ERROR, "a body that is longer than its length")
        if stream.done:
            self._inlet.drop(size)
        else:
            self._inlet.move(stream.into, size)

    def _ended(self, stream: Stream) -> None:
        stream.ended = True
        if stream.got != stream.declared:
            raise Mistake(Code.PROTOCOL_ERROR, "a body that is shorter than its length")
        stream.close_into()
        if stream.number in self._exchanges:
            self._start(stream)

    def _serve(self, exchange: Exchange) -> None:
        """A stream's thread."""
        try:
            try:
                self._front.handle(exchange)
                self._frames.useful()
            finally:
                exchange.close()
        except (Gone, OSError):
            pass  # there is nobody left to tell
        except Exception as error:  # noqa: BLE001 one request's mistake ends that one alone
            print(f"capkeep vault: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
