"""A cable between two machines: it can be cut, frozen, and slow. Nothing of the host's network is touched.

    with Link(server, target) as link:       # server is 192.0.2.1, target is 192.0.2.2
        link.cut()                           # both see that the cable is out
        link.mend()
        link.freeze()                        # nothing arrives any more, and nobody is told
        link.mend()
    with Link(server, target, seconds=0.001) as link:    # so much for each way

Without a delay it is a pair of the kernel's (veth(4)). Linux as it is built for small virtual
machines often has no netem (tc-netem(8)): with a delay each end is a tap whose frames a process of
this host carries across, each exactly as late as all others.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import struct
import subprocess
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.lab.machine import PATH, Machine

NAME: Final = "lab0"
ADDRESSES: Final = ("192.0.2.1", "192.0.2.2")  # TEST-NET-1 (RFC 5737)
HARDWARE: Final = ("02:00:00:00:00:01", "02:00:00:00:00:02")
NOBODY: Final = "02:00:00:00:00:ff"  # no card has it: a frame for it is lost without a word
SECONDS: Final = 20

_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000
_OFFLOADS: Final = 0x1 | 0x2 | 0x4  # checksums and segments of TCP over both IPs
_FRAME: Final = 1 << 17


class Link:
    """The cable. `seconds` is how long a frame takes to the other side."""

    def __init__(self, server: Machine, target: Machine, *, seconds: float = 0.0) -> None:
        self._ends = (server, target)
        self._seconds = seconds
        self._carrier = 0  # the process that carries frames; 0: the kernel does

    def __enter__(self) -> "Link":
        self.plug()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unplug()

    def plug(self) -> None:
        """Connect them; again after one of them was booted, since its card was gone with it."""
        self.unplug()
        if self._seconds:
            self._carrier = _carry(self._ends, self._seconds)
        else:
            other = str(self._ends[1].init)
            self._ip(0, "link", "add", NAME, "type", "veth", "peer", "name", NAME, "netns", other)
        for end in (0, 1):
            self._ip(end, "address", "add", f"{ADDRESSES[end]}/30", "dev", NAME)
            self._ip(end, "link", "set", NAME, "address", HARDWARE[end])
        self.mend()

    def unplug(self) -> None:
        """Take the cable and both cards out."""
        if self._carrier:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._carrier, signal.SIGKILL)
            os.waitpid(self._carrier, 0)
            self._carrier = 0
        for end in (0, 1):
            if self._ends[end].running:
                self._try(end, "link", "delete", NAME)

    def cut(self) -> None:
        """Out of the socket at the server's side."""
        self._ip(0, "link", "set", NAME, "down")

    def freeze(self) -> None:
        """Whatever is sent is lost, and nobody is told: as when a router on the way is switched off."""
        self._neighbours(NOBODY, NOBODY)

    def mend(self) -> None:
        """As it was at the beginning."""
        for end in (0, 1):
            self._ip(end, "link", "set", NAME, "up")
        self._neighbours(*HARDWARE)

    def _neighbours(self, server: str, target: str) -> None:
        for end, other in ((0, target), (1, server)):
            self._ip(end, "neighbour", "replace", ADDRESSES[1 - end], "lladdr", other, "dev", NAME,
                     "nud", "permanent")  # fmt: skip

    def _ip(self, end: int, *words: str) -> None:
        done = self._try(end, *words)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.decode()}"

    def _try(self, end: int, *words: str) -> "subprocess.CompletedProcess[bytes]":
        argv = ["nsenter", f"--target={self._ends[end].init}", "--net", "ip", *words]
        return subprocess.run(argv, capture_output=True, timeout=SECONDS, env={"PATH": PATH})


def _carry(ends: tuple[Machine, Machine], seconds: float) -> int:
    """Start the process that carries frames between a tap in each machine; its number."""
    ready, tell = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready)
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            taps = [_tap(end.init) for end in ends]
            os.write(tell, b".")
            os.close(tell)
            if os.getppid() == parent:
                _relay(taps, seconds)
        finally:
            os._exit(1)
    os.close(tell)
    started = os.read(ready, 1)
    os.close(ready)
    if not started:
        os.waitpid(pid, 0)
        raise OSError("no tap can be made (see above)")
    return pid


def _tap(pid: int) -> int:
    """A tap in the network namespace of a process. It belongs to that where its device is opened."""
    with Path(f"/proc/{pid}/ns/net").open() as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "setns")
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", NAME.encode(), flags))
    fcntl.ioctl(tap, _TUNSETVNETHDRSZ, struct.pack("i", 12))
    fcntl.ioctl(tap, _TUNSETOFFLOAD, _OFFLOADS)
    return tap


def _relay(taps: list[int], seconds: float) -> None:
    """Carry frames, each `seconds` later, until this process is ended."""
    waiting: tuple[deque[tuple[float, bytes]], ...] = (deque(), deque())
    while True:
        now = time.monotonic()
        for lane, out in zip(waiting, reversed(taps), strict=True):
            while lane and lane[0][0] <= now:
                with contextlib.suppress(OSError):  # the card is down, or its queue is full
                    os.write(out, lane[0][1])
                lane.popleft()
        due = min((lane[0][0] for lane in waiting if lane), default=now + 60)
        readable, _, _ = select.select(taps, [], [], max(0.0, due - time.monotonic()))
        for tap in readable:
            lane = waiting[taps.index(tap)]
            with contextlib.suppress(OSError):
                for _ in range(64):
                    frame = os.read(tap, _FRAME)
                    lane.append((time.monotonic() + seconds, frame))
