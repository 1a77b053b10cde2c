"""The root parent on a host where systemd does not start the rooms: it opens doors, no more.

It listens on every room's socket and starts the room for whoever was allowed to connect, the way a
service manager does with `Accept=yes` (systemd.socket(5)). It reads nothing that a caller sends,
so there is nothing to parse, and whatever it executes and grants stands in the plan.
"""

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import sys
import time
from typing import Final, NamedTuple

from capkeep.errors import CapkeepError, Failure, RefusedError, StepError
from capkeep.host.apply import make_run_directories, refuse_untrusted
from capkeep.host.lent import refuse_exchangeable
from capkeep.host.start import start
from capkeep.kernel.facts import peer_uid
from capkeep.kernel.process import Child
from capkeep.plan.load import load_plan
from capkeep.plan.model import (
    NOBODY_YET,
    OPEN_TO_MEMBERS,
    Door,
    Places,
    Plan,
    Room,
    RoomKind,
    Starter,
)
from capkeep.rooms.protocol import encode

BACKLOG: Final = 128
SHORTAGE_SECONDS: Final = 0.1  # between two tries when descriptors or memory have run out
VAULT_END_SECONDS: Final = 180  # to tidy up on a slow remote, once its room has ended


class _Guest(NamedTuple):
    """On whose behalf a process runs."""

    room: str  # "" for a vault
    uid: int
    vaults: tuple[Child, ...] = ()  # those on the other ends of its wires


class _Waiting(NamedTuple):
    """A runner that has been started ahead, and the line on which it gets its caller."""

    child: Child
    line: socket.socket


class Doors:
    """Listeners, and the rooms behind them. Use as a context: leaving closes and ends them all."""

    def __init__(self, places: Places, *, exit_when_idle: float = 0) -> None:
        """Raises RefusedError where there is no plan, or where the doors are open already."""
        self.plan = _load_safe(places)
        self._stamp = _stamp(places.plan)
        self.exit_when_idle = exit_when_idle
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[Door, socket.socket] = {}
        self._living: dict[Child, _Guest] = {}
        self._waiting: _Waiting | None = None
        self._left: dict[Child, float] = {}  # vaults whose room has ended: when they must have
        make_run_directories(self.plan)
        self._lock = take_lock(places.run)
        self._idle_since = time.monotonic()

    def __enter__(self) -> "Doors":
        return self

    def __exit__(self, *_: object) -> None:
        for door, listener in self._listeners.items():
            listener.close()
            _unlink(door.path)
        self._dismiss()
        for child in self._living:
            with contextlib.suppress(TimeoutError):  # the others must end all the same
                child.kill()
        self._selector.close()
        os.close(self._lock)

    def open(self) -> int:
        """Listen on every door of the plan and on no other; returns how many. Raises OSError.

        A door that stays as it was is not closed in between, so that no caller is turned away.
        """
        rooms = {r.door: r for r in self.plan.rooms if r.door}
        for door in self._listeners.keys() - rooms.keys():
            listener = self._listeners.pop(door)
            self._selector.unregister(listener)
            listener.close()
            if door.path not in {d.path for d in rooms}:
                _unlink(door.path)
        for door, room in rooms.items():
            if door in self._listeners:
                self._selector.modify(self._listeners[door], selectors.EVENT_READ, room)
            else:
                listener = self._listeners[door] = _listen(door)
                self._selector.register(listener, selectors.EVENT_READ, room)
        return len(rooms)

    def _follow_plan(self) -> None:
        """Take over a plan that `apply` has written since; keep the old one if it is not usable."""
        stamp = _stamp(self.plan.places.plan)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.plan = _load_safe(self.plan.places)
            count = self.open()
            self._dismiss()  # it has the old plan before its eyes
            print(f"doors: a new plan, {count} doors", file=sys.stderr, flush=True)
        except (OSError, CapkeepError) as error:
            print(f"doors: the new plan is not used: {error}", file=sys.stderr, flush=True)

    def serve(self, should_stop: "StopFlag") -> None:
        """Open rooms for callers until asked to stop, or until idle for long enough."""
        while not should_stop.stop and not self._idle_for_long():
            ready = self._selector.select(timeout=1.0)
            self._follow_plan()
            if not ready and not self._living:
                self._keep_waiting()
            self._end_overdue()
            for key in (self._selector.get_map().get(k.fileobj) for k, _ in ready):
                if key is None:
                    continue  # its door has just been closed
                if isinstance(key.data, Room):
                    self._answer(key.fileobj, key.data)
                else:
                    self._reap(key.fileobj)

    def _keep_waiting(self) -> None:
        """Start a runner ahead while nothing else happens: the next caller has it 60 ms sooner.

        It holds no secret and no privilege, and gets its caller as a descriptor (SCM_RIGHTS).
        """
        if self._waiting is not None:
            return
        runner = self.plan.runner
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                child = start(self.plan, runner, theirs, NOBODY_YET).room
            except (OSError, CapkeepError):
                ours.close()  # whoever comes next is told why it cannot be started
                return
        self._waiting = _Waiting(child, ours)
        self._selector.register(child, selectors.EVENT_READ)

    def _hand_over(self, caller: socket.socket, uid: int) -> Child | None:
        """Give a caller to the runner that waits; None if there is none any more."""
        if self._waiting is None:
            return None
        child, line = self._waiting
        self._waiting = None
        self._selector.unregister(child)
        with line:
            try:
                socket.send_fds(line, [str(uid).encode()], [caller.fileno()])
            except OSError:
                child.kill()
                return None
        return child

    def _dismiss(self) -> None:
        """End the runner that waits."""
        if self._waiting is not None:
            child, line = self._waiting
            self._waiting = None
            self._selector.unregister(child)
            line.close()
            with contextlib.suppress(TimeoutError):
                child.kill()

    def _idle_for_long(self) -> bool:
        if self._living:
            self._idle_since = time.monotonic()
        idle = time.monotonic() - self._idle_since
        return bool(self.exit_when_idle) and idle > self.exit_when_idle

    def _answer(self, listener: object, room: Room) -> None:
        assert isinstance(listener, socket.socket) and room.door is not None
        try:
            caller, _ = listener.accept()
        except OSError:
            # Out of descriptors or memory; the caller goes on waiting, and so do we.
            time.sleep(SHORTAGE_SECONDS)
            return
        with caller:
            uid = peer_uid(caller)
            if self._is_busy(room, room.door, uid):
                _turn_away(caller, Failure.LOCKED, f"{room.name} is busy")
                return
            if room.kind is RoomKind.RUNNER and (child := self._hand_over(caller, uid)):
                self._watch(child, _Guest(room.name, uid))
                return
            try:
                started = start(self.plan, room, caller, uid)
            except Exception as error:  # noqa: BLE001 - one room must not close all others' doors
                text = f"{room.name} cannot be opened: {error}"
                print(f"doors: {text}", file=sys.stderr, flush=True)
                failure = error.failure if isinstance(error, StepError) else Failure.ENGINE
                _turn_away(caller, failure, text)
                return
        self._watch(started.room, _Guest(room.name, uid, started.vaults()))
        for vault in started.vaults():
            self._watch(vault, _Guest("", uid))

    def _is_busy(self, room: Room, door: Door, uid: int) -> bool:
        """A room is for so many callers; one that all may ask for so many of every user.

        So nobody can keep it from others by holding all its places.
        """
        here = [g for g in self._living.values() if g.room == room.name]
        if room.kind in OPEN_TO_MEMBERS:
            here = [g for g in here if g.uid == uid]
        return len(here) >= door.connections

    def _watch(self, child: Child, guest: _Guest) -> None:
        self._living[child] = guest
        self._selector.register(child, selectors.EVENT_READ)

    def _reap(self, child: object) -> None:
        assert isinstance(child, Child)
        if self._waiting is not None and child is self._waiting.child:
            self._dismiss()
            return
        self._selector.unregister(child)
        guest = self._living.pop(child)
        self._left.pop(child, None)
        for vault in guest.vaults:
            if vault in self._living:
                self._left[vault] = time.monotonic() + VAULT_END_SECONDS
        code = child.poll()
        if code:
            who = guest.room or "a vault"
            print(f"doors: {who} ended with {code}", file=sys.stderr, flush=True)

    def _end_overdue(self) -> None:
        """End the vaults that stay although their room has long ended."""
        now = time.monotonic()
        for vault in [v for v, deadline in self._left.items() if now > deadline]:
            del self._left[vault]
            print("doors: a vault did not end with its room", file=sys.stderr, flush=True)
            vault.send_signal(signal.SIGKILL)  # it is reaped like any other


class StopFlag:
    """Set by SIGTERM, by SIGINT, or when the terminal is closed."""

    def __init__(self) -> None:
        self.stop = False

    def install(self) -> None:
        """Take the signals over from the interpreter."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._handle)

    def _handle(self, *_: object) -> None:
        self.stop = True


def _load_safe(places: Places) -> Plan:
    """The plan, if what it executes is still safe to execute. Raises RefusedError."""
    plan = load_plan(places)
    if plan.starter is Starter.SYSTEMD:
        raise RefusedError(
            "systemd opens the doors on this host",
            hint='for doors of our own write start = "doors" in [host] and `capkeep apply`',
        )
    if os.geteuid() != plan.opener:
        raise RefusedError(f"{plan.runner.grant.user} opens the doors on this host")
    refuse_untrusted(plan, os.geteuid())
    refuse_exchangeable(plan)
    return plan


def _stamp(path: str) -> tuple[int, int]:
    """Changes whenever the file is replaced."""
    try:
        state = os.stat(path)
    except OSError:
        return (0, 0)
    return (state.st_ino, state.st_mtime_ns)


def take_lock(run_dir: str) -> int:
    """Only one process opens the doors, or takes them away. Raises RefusedError, OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{run_dir}/doors.lock", flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise RefusedError(
            "the doors are open already",
            hint=f"another `capkeep doors` serves {run_dir}; stop it first to start a new one",
        ) from error
    return fd


def _listen(door: Door) -> socket.socket:
    """A listener that appears under its name only with its final owner and mode."""
    draft = door.path + ".new"
    _unlink(draft)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        listener.bind(draft)
        if os.geteuid() == 0:
            os.chown(draft, door.uid, door.gid)
        os.chmod(draft, door.mode)
        listener.listen(BACKLOG)
        os.rename(draft, door.path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _turn_away(caller: socket.socket, failure: Failure, text: str) -> None:
    caller.setblocking(False)
    with contextlib.suppress(OSError):
        caller.sendall(encode({"event": "result", "failure": failure, "text": text}))
