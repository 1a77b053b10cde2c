"""Connections in, threads out: a bounded number of each, all ended when the wire closes."""

import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Final

from capkeep.rooms.rest.front import Front
from capkeep.rooms.rest.http import Connection, Gone, Refusal, Times

# restic opens at most 5 connections to a REST backend unless told otherwise (-o rest.connections).
MAX_CONNECTIONS: Final = 32
STACK: Final = 512 << 10  # bytes of a thread's stack
END_SECONDS: Final = 20


class Server:
    """Serves a front on accepted connections. Close it to end them all."""

    def __init__(self, front: Front, times: Times | None = None) -> None:
        self._front = front
        self._times = times or Times()
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        threading.stack_size(STACK)

    def accept(self, listener: socket.socket) -> None:
        """Take one waiting connection; one too many is closed at once."""
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # it left before we came
        sock.setblocking(True)
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                sock.close()
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._open[sock] = thread
        thread.start()

    def close(self) -> None:
        """End all connections and wait for their threads, for a limited time."""
        with self._lock:
            threads = list(self._open.items())
        for sock, _ in threads:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + END_SECONDS
        for _, thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serve(self, sock: socket.socket) -> None:
        try:
            self._requests(Connection(sock, self._times))
        except (Gone, OSError):
            pass  # there is nobody left to tell
        except Exception as error:  # noqa: BLE001 one connection's mistake ends that one alone
            print(f"capkeep vault: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            with self._lock:
                del self._open[sock]
            sock.close()

    def _requests(self, connection: Connection) -> None:
        try:
            for request in connection.requests():
                self._front.handle(request, connection)
                if request.close:
                    connection.linger()
                    return
        except Refusal as refusal:
            connection.refuse(refusal)
