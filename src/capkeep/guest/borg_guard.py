"""Serves a borg repository in a vault: borg's own server, and who may only add can only add.

`borg serve --append-only` answers a removal with success and keeps the old transactions, from which
a person can undo it; whoever speaks to it can also replace what is stored under an id, and the key.
Here, towards a reader, nothing that is stored goes away: removals are not carried out, an id that
is there keeps what it has, the key is never written, and no lock but one's own is broken. What is
left to a hostile reader is a manifest that omits archives; their data stays, and the keeper, which
knows what there was, brings them back.

With `make` a reader can besides make the repository, with its one key, in an empty place: only a target
whose password nobody here has is let.

usage: borg_guard.py append|make|admin REPOSITORY FOLDER REPORT QUOTA
"""

import errno
import fcntl
import json
import os
import sys

import borg_locks
import client_pipes

VERSIONS = ((1, 2), (1, 4))
# All that the server of these versions can be asked. An unknown method is a version to look at.
METHODS = frozenset((
    "__len__", "check", "commit", "delete", "destroy", "get", "list", "scan", "negotiate", "open",
    "put", "rollback", "save_key", "load_key", "break_lock", "get_free_nonce",
    "commit_nonce_reservation", "inject_exception",
))  # fmt: skip
APPEND = (
    "__len__", "commit", "delete", "get", "list", "scan", "negotiate", "open", "put", "rollback",
    "load_key", "get_free_nonce", "commit_nonce_reservation",
)  # fmt: skip
MAKE = (*APPEND, "save_key")
ADMIN = (*APPEND, "check", "save_key", "break_lock")
LOCK = "making"  # in the vaults' own directory: held by whoever makes the repository
# What a client says where the repository is that is on another host, and does not know it.
UNTOLD = (b"/repository", "/repository")
MANIFEST = bytes(32)
NONCES = 1 << 32  # that one call may reserve; borg asks for 2**28 (borg.nonces)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Refused(Exception):
    """This borg cannot be guarded."""


class Report:
    """Tells the vault, in lines of JSON."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self, **said: object) -> None:
        """Say something; a vault that has left does not hear it."""
        try:
            os.write(self._fd, json.dumps(said).encode() + b"\n")
        except OSError:
            pass

    def failed(self, error: OSError) -> None:
        """The disk behind."""
        if error.errno in FULL:
            self.tell(failure="no-space", text=f"the repository's disk is full: {error.strerror}")


def alone(folder: str) -> bool:
    """Whether nobody else makes the repository; from now on until this program ends."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{folder}/{LOCK}", flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    return True


def guarded(report: Report, place: str, *, admin: bool, making: str = "", quota: int = 0):
    """borg's server with less to ask for, of the one repository there. Raises Refused.

    `making`: the vaults' own directory, where who may only add may make the repository; of `quota` bytes
    at most, if any.
    """
    import borg
    from borg.remote import PathNotAllowed, RepositoryServer

    version = tuple(map(int, borg.__version__.split(".")[:2]))
    if version not in VERSIONS:
        raise Refused(f"borg {borg.__version__} is not supported: install borg 1.2 or 1.4")
    if unknown := set(RepositoryServer.rpc_methods) ^ METHODS:
        raise Refused(
            f"borg {borg.__version__} serves what nobody has looked at: {', '.join(sorted(unknown))}"
        )

    from borg.repository import Repository

    class Guarded(RepositoryServer):
        """Methods that are here are asked before the repository's own (RepositoryServer.serve)."""

        rpc_methods = ADMIN if admin else MAKE if making else APPEND
        stored = 0
        made = False  # by this client
        looking = False  # this client has no lock, and writes nothing

        def negotiate(self, client_data: object) -> object:
            """What a client says of itself changes nothing, this program's messages included."""
            if not isinstance(client_data, dict):
                raise PathNotAllowed("client")
            return {"server_version": borg.remote.BORG_VERSION}

        def open(
            self, path: object, create=False, lock_wait=None, lock=True, exclusive=None,
            append_only=False,
        ):  # fmt: skip
            make = bool(create) and not admin
            if self.repository is not None or (make and not (making and alone(making))):
                raise PathNotAllowed(path)
            self.append_only = not admin
            if path in UNTOLD:
                path = place
            if make:
                return self._make(path, lock_wait, exclusive)
            self.looking = not lock and not admin
            found = super().open(
                path, create=bool(create), lock_wait=lock_wait, lock=bool(lock) or not admin,
                exclusive=None if self.looking else exclusive, append_only=bool(append_only),
            )  # fmt: skip
            if self.looking:
                self._unlock()
            return found

        def _unlock(self) -> None:
            """Keep nobody waiting from now on: what is read is read by the index as it is now.

            Opening it can take writing, so that is done under the lock (borg.repository).
            """
            len(self.repository)
            self.repository.lock.release()
            self.repository.lock, self.repository.do_lock = None, False

        def _make(self, path: object, lock_wait, exclusive):
            """borg makes none where anything is. Neither limit is to be the repository's own."""
            self.storage_quota = None
            found = super().open(path, create=True, lock_wait=lock_wait, exclusive=exclusive)
            self.repository.append_only, self.repository.storage_quota = True, quota or None
            self.made = True
            return found

        def save_key(self, keydata: bytes) -> None:
            self._may_write()
            if not admin and (not self.made or self.repository.load_key()):
                raise PathNotAllowed("key")
            self.repository.save_key(keydata)

        def put(self, id: bytes, data: bytes, wait: bool = True) -> None:
            self._may_write()
            if not admin and id != MANIFEST and id in self.repository:
                return
            self._carry_out(self.repository.put, id, data)
            self.stored += len(data)

        def delete(self, id: bytes, wait: bool = True) -> None:
            if admin:
                self._carry_out(self.repository.delete, id)

        def commit(
            self, save_space=False, compact=True, threshold=0.1, cleanup_commits=False
        ) -> None:
            self._may_write()
            options = (
                {"save_space": save_space, "compact": compact, "threshold": threshold,
                 "cleanup_commits": cleanup_commits}
                if admin else {"compact": False}
            )  # fmt: skip
            self._carry_out(self.repository.commit, **options)
            report.tell(stored=self.stored)
            self.stored = 0

        def commit_nonce_reservation(self, next_unreserved: int, start_nonce: int) -> None:
            """Forward alone: a nonce that is used twice shows what it hides."""
            self._may_write()
            free = self.repository.get_free_nonce() or 0
            if not admin and not free < next_unreserved <= max(free, start_nonce or 0) + NONCES:
                raise PathNotAllowed("nonce")
            self.repository.commit_nonce_reservation(next_unreserved, start_nonce)

        def rollback(self) -> None:
            """A client that fails asks for it; who has written nothing keeps the index as it is."""
            if not self.looking:
                self.repository.rollback()

        def _may_write(self) -> None:
            if self.looking:
                raise PathNotAllowed("write without a lock")

        def _carry_out(self, action, *words, **options) -> None:
            try:
                action(*words, **options)
            except OSError as error:
                report.failed(error)
                raise
            except Repository.StorageQuotaExceeded as error:
                report.tell(failure="no-space", text=f"the repository is full: {error}")
                raise

    return Guarded


def main(access: str, path: str, folder: str, report: Report, quota: int) -> int:
    """Wait for one client, and serve it on standard input and output until it hangs up."""
    try:
        making = folder if access == "make" else ""
        kind = guarded(report, path, admin=access == "admin", making=making, quota=quota)
    except (Refused, ImportError) as error:
        report.tell(failure="refused", text=str(error))
        return 1
    from borg.logger import setup_logging

    setup_logging(level="warning")
    borg_locks.own(folder)
    server = kind(
        restrict_to_paths=(), restrict_to_repositories=(path,), append_only=access != "admin",
        storage_quota=quota or None,
    )  # fmt: skip
    if not client_pipes.take():
        return 0
    try:
        server.serve()
    except Exception as error:  # whatever a hostile client makes of borg's reader
        print(f"capkeep borg_guard: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        if server.repository is not None:
            server.repository.close()
    return 0


if __name__ == "__main__":
    _, told_access, told_path, told_folder, told_report, told_quota = sys.argv
    report_to = Report(int(told_report))
    raise SystemExit(main(told_access, told_path, told_folder, report_to, int(told_quota)))
