"""A user namespace in which files can have any owner, and which can do nothing outside of it.

A process without root makes the namespace; ids other than its own can be put into it only by one that
holds CAP_SETUID and CAP_SETGID outside. So a helper is forked first, and does that alone. Whoever
enters has all capabilities inside, over files whose owners are ids of the namespace, and none outside.
Sources: user_namespaces(7), capabilities(7).
"""

import contextlib
import os
from collections.abc import Iterable
from typing import Final

from capkeep.kernel import libc
from capkeep.kernel.facts import CAPABILITIES
from capkeep.kernel.process import become_user, branch

NEW_USER: Final = 0x10000000  # CLONE_NEWUSER
_CAPBSET_READ, _CAPBSET_DROP = 23, 24  # linux/prctl.h
_READY: Final = b"u"


def id_map(own: int, first: int, count: int) -> str:
    """The lines of a uid_map: ids from 0 on are the subordinate ones, and one's own stays itself."""
    if own >= count:
        return f"0 {first} {count}\n{own} {own} 1\n"
    parts = [(0, first, own), (own, own, 1), (own + 1, first + own + 1, count - own - 1)]
    return "".join(f"{inside} {outside} {size}\n" for inside, outside, size in parts if size)


class Namespace:
    """A user namespace under way: made at once, given its ids later, when they are known.

    Make it before there is any secret in memory, and while the process can still be looked into
    (`hide_memory`): the helper opens files that only then belong to the process's user.
    """

    def __init__(self) -> None:
        """Raises OSError where the kernel gives no user namespace."""
        ready_read, ready_write = os.pipe()
        maps_read, self._maps = os.pipe()
        done_read, done_write = os.pipe()
        parent = os.getpid()

        def work() -> None:
            os.close(ready_write)
            os.close(self._maps)
            _help(parent, ready_read, maps_read, done_write)

        self._helper = branch(work)
        for fd in (ready_read, maps_read, done_write):
            os.close(fd)
        try:
            libc.unshare(NEW_USER)
            os.write(ready_write, _READY)
            self._reached = os.read(done_read, 1) == _READY
        except OSError:
            os.close(ready_write)  # first: the helper waits for it, and we for the helper
            ready_write = -1
            self.leave()
            raise
        finally:
            if ready_write >= 0:
                os.close(ready_write)
            os.close(done_read)

    def leave(self) -> None:
        """End the helper."""
        if self._maps >= 0:
            os.close(self._maps)
            self._maps = -1
            os.waitpid(self._helper, 0)

    def enter(self, uid: int, gid: int, ids: tuple[int, int], capabilities: Iterable[str]) -> None:
        """Give the namespace its ids, and keep these capabilities in it. Raises OSError."""
        maps = (id_map(uid, *ids), id_map(gid, *ids))
        if not self._reached:
            self.leave()
            raise OSError(1, "nobody could open its maps")
        os.write(self._maps, f"{maps[0]}/{maps[1]}".encode())
        self.leave()
        for name, wanted in zip(("uid_map", "gid_map"), maps, strict=True):
            with open(f"/proc/self/{name}") as file:
                found = [line.split() for line in file]
            if found != [line.split() for line in wanted.splitlines()]:
                raise OSError(1, f"the new user namespace has not got its ids ({name})")
        keep(capabilities)


def _help(process: int, ready: int, maps: int, done: int) -> None:
    """In the helper: open the maps while they can be opened, and fill them in when told."""
    if os.read(ready, 1) != _READY:
        return
    files = [os.open(f"/proc/{process}/{name}", os.O_WRONLY) for name in ("uid_map", "gid_map")]
    os.write(done, _READY)
    text = b""
    while part := os.read(maps, 4096):
        text += part
    for file, lines in zip(files, text.split(b"/"), strict=True):
        os.write(file, lines)


def keep(capabilities: Iterable[str]) -> None:
    """Hold these capabilities, for good and for what is started too, and give up all others.

    Raises OSError where one of them is not held.
    """
    numbers = [CAPABILITIES.index(name) for name in capabilities]
    mask = sum(1 << number for number in numbers)
    libc.clear_ambient()
    number = 0
    with contextlib.suppress(OSError):  # after the last one that this kernel knows
        while libc.prctl("PR_CAPBSET_READ", _CAPBSET_READ, number) >= 0:
            if number not in numbers:
                libc.prctl("PR_CAPBSET_DROP", _CAPBSET_DROP, number)
            number += 1
    libc.capset(mask, mask, mask)
    for number in numbers:
        libc.raise_ambient(number)


def become(uid: int, gid: int) -> None:
    """Be somebody of the own user namespace, without any capability, for good. Raises OSError.

    Whoever is that already gives up capabilities alone.
    """
    if uid != os.geteuid():
        become_user(uid, gid)
    keep(())


def end_all(uid: int, gid: int) -> None:
    """End every process of somebody else, and nobody's beside.

    Whom a process may signal goes by its real and effective ids, and who may signal it by its real and
    saved ones (kill(2)). So he cannot end the one that ends his: it has another id for the latter.
    """
    import signal

    other = uid + 1
    assert os.geteuid() not in (uid, other), "one's own are not to be ended"

    def work() -> None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(other, uid, other)
        keep(())
        # All at once: whoever makes another process meanwhile cannot end that, and dies himself.
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)

    os.waitpid(branch(work), 0)
