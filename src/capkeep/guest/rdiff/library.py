"""rdiff-backup's own code, as the half that has the repository uses it.

What is called is not meant for others and may change, so only versions that are known are served.
Sources: rdiff_backup and rdiffbackup of 2.2.2 and 2.2.6.

Unless it is asked for otherwise (owners.py) the mirror belongs to the vault's own user: owners, special
permissions, extended attributes and access lists are kept in the repository's metadata, exactly, and
not on the mirror's files.
"""

import io
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Protocol

from capkeep.guest.rdiff import owners
from capkeep.guest.rdiff.wire import AclEntry, Failed, Index, Meta


class Node(Protocol):
    """rdiff-backup's own view of a file or other node (rpath.RORPath)."""

    index: Index
    data: dict[str, object]

    def isreg(self) -> bool: ...
    def getsize(self) -> int: ...
    def getmtime(self) -> int: ...
    def isflaglinked(self) -> bool: ...
    def get_link_flag(self) -> Index: ...
    def flaglinked(self, index: Index) -> None: ...
    def getRORPath(self) -> "Node": ...  # noqa: N802 rdiff-backup's name
    def setfile(self, file: object) -> None: ...
    def set_attached_filetype(self, kind: str) -> None: ...


class File(Protocol):
    """A file of the repository's own (rpath.RPath)."""

    path: bytes

    def isdir(self) -> bool: ...
    def append(self, name: bytes) -> "File": ...
    def get_parent_rp(self) -> "File": ...
    def getinctime(self) -> int: ...
    def delete(self) -> None: ...
    def get_bytes(self) -> bytes: ...


KNOWN: Final = re.compile(r"2\.2\.\d+(?:\D.*)?")
TOP_MODE: Final = 0o700  # of the repository itself: only who has it looks into the mirror
PLAIN_MODE: Final = 0o777  # of the mirror's files: no set-uid program lies in a repository
SECOND: Final = 1.05
WORDS: Final = 20
NOTE: Final = b"capkeep.json"  # of which job the repository is
NEW: Final = b".new"  # behind the name of what is being written
UNFINISHED: Final = b"rdiff-backup.tmp."  # what a file is called that is being written
METADATA: Final = "metadata"
OWNERS: Final = (METADATA, "names", "numbers")
_said: list[str] = []
_owners: list[str] = [METADATA]  # whom the mirror's files belong to, as it was asked for
_unfinished: list[bytes] = []  # the path of the one file that is being written


def said() -> list[str]:
    """rdiff-backup's last words."""
    return _said[-3:]


def load(whose: str = METADATA) -> None:
    """Import rdiff-backup, and set it as it is to work here. Raises Failed for another version."""
    assert whose in OWNERS, "nothing else is asked for"
    _owners[:] = [whose]
    try:
        from rdiff_backup import Globals, log, rpath
        from rdiffbackup.actions import DEFAULT_NOT_COMPRESSED_REGEXP
        from rdiffbackup.locations import _repo_shadow
        from rdiffbackup.meta import acl_posix, ea
    except ImportError as error:
        raise Failed("engine", f"rdiff-backup is not installed whole: {error}") from error
    if not KNOWN.fullmatch(Globals.version):
        raise Failed("engine", f"rdiff-backup {Globals.version} is not known to capkeep: 2.2 is")
    Globals.api_version["actual"] = Globals.api_version["max"]
    Globals.permission_mask = PLAIN_MODE
    Globals.no_compression_regexp = re.compile(os.fsencode(DEFAULT_NOT_COMPRESSED_REGEXP))
    Globals.chars_to_quote = b""
    Globals.isbackup_writer = True
    Globals.backup_writer = Globals.local_connection
    Globals.symlink_perms = False
    Globals.fsync_directories = True
    for name in ("eas", "acls"):  # they are compared and kept in the metadata …
        setattr(Globals, f"{name}_active", 1)
        setattr(Globals, f"{name}_write", 1)
    # … and never set on the mirror.
    ea.ExtendedAttributes.write_to_rp = _nothing
    acl_posix.AccessControlLists.write_to_rp = _nothing
    ea.ExtendedAttributes.read_from_rp = _nothing
    acl_posix.AccessControlLists.read_from_rp = _nothing
    steps = _repo_shadow._RepoPatchITRB  # noqa: SLF001
    steps._matches_cached_rorp = _judge(steps._matches_cached_rorp, steps.DONE)  # noqa: SLF001
    rpath.RPath.get_temp_rpath = _temporary
    if whose != METADATA:
        owners.set_up(whose, _entries)
    log.Log.setverbosity(3)
    log.Log.log_to_term = _hear


def _nothing(*_arguments: object) -> None:
    """In place of what would touch attributes of the mirror."""


def _temporary(place: "File", sibling: bool = False) -> "File":
    """A name for what is being written that no file of a user's has.

    rdiff-backup's own are numbered: of a user's file that was called like the next one, the mirror
    would keep nothing.
    """
    folder = place.get_parent_rp() if sibling or not place.isdir() else place
    found = folder.append(UNFINISHED + secrets.token_hex(12).encode())
    _unfinished[:] = [found.path]
    return found


def drop_unfinished() -> None:
    """Give back at once what a file took that did not become one: the disk may be full."""
    for path in _unfinished:
        with suppress(OSError):
            os.unlink(path)


def _keep_to_ourselves(top: bytes) -> None:
    """Never give the mirror's own directory the mode of the "/" that it shows."""
    from rdiff_backup import rpath

    chmod = rpath.RPath.chmod

    def chmod_below(self: File, permissions: int, *more: object) -> None:
        chmod(self, TOP_MODE if self.path == top else permissions, *more)

    rpath.RPath.chmod = chmod_below
    if _owners != [METADATA]:
        owners.keep_top(top)


class _Sources(Protocol):
    def get_source_rorp(self, index: Index) -> Node: ...


class _Steps(Protocol):
    CCPP: _Sources


Judge = Callable[[_Steps, Node, Node], int]


def _judge(strictly: Judge, done: int) -> Judge:
    """How rdiff-backup is to see whether a file of the mirror became what was listed.

    Another name of a file has no attributes of its own to be set, and the mirror's are not the
    listed ones: there the size and the time tell.
    """

    def matches(steps: _Steps, wanted: Node, new: Node) -> int:
        listed = steps.CCPP.get_source_rorp(wanted.index)
        if wanted.isflaglinked() and new.isreg():
            same = new.getsize() == listed.getsize() and new.getmtime() == listed.getmtime()
            return done if same else strictly(steps, wanted, new)
        return strictly(steps, wanted, new)

    return matches


def _hear(message: str, _verbosity: int) -> None:
    _said.append(" ".join(str(message).split())[:2000])
    del _said[:-WORDS]


class Repository:
    """A repository that is there, locked by us, and whole: what a dead session left is taken back."""

    def __init__(self, path: bytes, *, write: bool) -> None:
        """Raises Failed: no-repository, locked, damaged."""
        from rdiff_backup import Globals, rpath
        from rdiffbackup.locations._repo_shadow import RepoShadow

        self.base = rpath.RPath(Globals.local_connection, path).normalize()
        self.data = self.base.append_path(b"rdiff-backup-data")
        _keep_to_ourselves(self.base.path)
        self.increments = self.data.append_path(b"increments")
        self.shadow = RepoShadow
        self.went_back = False
        if not self.data.isdir():
            raise Failed("no-repository", f"there is no repository at {os.fsdecode(path)}")
        self._lock_path = self.data.append(b"lock.yml")
        Globals.rbdir = self.data
        RepoShadow.setup_paths(self.base, self.data, self.increments)
        self._refuse_quoting()
        self._refuse_owned()
        if not write and not self._lame():
            self._lock(exclusive=False)
            if not self._lame():
                return
            self._unlock(exclusive=False)
        self._lock(exclusive=True)
        self._go_back()

    def _refuse_quoting(self) -> None:
        """Names are written as they are here, as every file system of Linux can hold them."""
        for name in (b"chars_to_quote", b"special_escapes"):
            mark = self.data.append(name)
            if mark.lstat() and mark.get_bytes().strip():
                raise Failed(
                    "engine",
                    "this repository quotes characters of file names, as for a file system of"
                    " another kind; capkeep does not: begin a new repository",
                )

    def _refuse_owned(self) -> None:
        """What belongs to others cannot be read, or replaced, without being allowed to."""
        if _owners == [METADATA] and self.owner().get("owners"):
            note = os.fsdecode(os.path.join(self.data.path, NOTE))
            raise Failed(
                "denied",
                "the files of this mirror belong to their owners, so it goes on with owners = "
                f'"{self.owner()["owners"]}" alone; to take them back, as root: chown -R --reference='
                f"{os.fsdecode(self.base.path)} {os.fsdecode(self.base.path)} && chmod -R u+rwX"
                f" {os.fsdecode(self.base.path)} && rm {note}",
            )

    def begin_owned(self) -> None:
        """Note that files are about to be given to their owners, before the first one is."""
        note = self.owner()
        if _owners != [METADATA] and note.get("owners") != _owners[0]:
            self._write(NOTE, json.dumps({**note, "owners": _owners[0], "owned": False}).encode())

    def end_owned(self, when: int, *, first: bool) -> int:
        """Give what no session has changed since then to its owners as well; how many files."""
        note, given = self.owner(), 0
        if _owners == [METADATA] or note.get("owned") is True:
            return given
        from rdiff_backup import rpath
        from rdiffbackup import meta_mgr
        from rdiffbackup.locations.map import longnames

        for node in () if first else meta_mgr.get_meta_manager(True).get_metas_at_time(when):
            given += 1
            place = longnames.get_mirror_rp(self.base, node)
            if place.lstat() == node.lstat():
                rpath.copy_attribs(node, place)
            elif place.lstat() and node.isspecial():
                place.chown(node.data["uid"], node.data["gid"])
        self._write(NOTE, json.dumps({**note, "owned": True}).encode())
        return given

    def _lame(self) -> bool:
        """Whether a session has not come to its end."""
        return len(self.files(b"current_mirror")) != 1 and bool(self.sessions())

    def files(self, prefix: bytes) -> list[File]:
        """The files of rdiff-backup's own that begin so and have a session's time in their names."""
        found: list[File] = self.data.append(prefix).get_incfiles_list()
        return found

    def _lock(self, *, exclusive: bool) -> None:
        if not exclusive and not self._lock_path.lstat():
            return  # of a version that had no locks
        if self.shadow.lock(self._lock_path, exclusive) is False:
            raise Failed("locked", "somebody else is at work in the repository")

    def _unlock(self, *, exclusive: bool) -> None:
        self.shadow.unlock(self._lock_path, exclusive)

    def _go_back(self) -> None:
        """Take back what a session has left that did not come to its end."""
        markers = self.files(b"current_mirror")
        if len(markers) == 1:
            return
        if not markers:
            self._refuse_without_mark()
            self._clear_first()
            return
        # We hold the lock, so nobody is at work, whatever number the session's process had.
        if self.shadow.needs_regress(self.base, self.data, self.increments, True):
            self.shadow.regress(self.base, self.increments)
        elif len(markers) > 1:
            self._drop_newest_marker()
        self.shadow.get_mirror_time(refresh=True)
        self.went_back = True

    def _drop_newest_marker(self) -> None:
        """The session had done nothing yet: rdiff-backup sees no increments at all."""
        max(self.files(b"current_mirror"), key=lambda rp: rp.getinctime()).delete()

    def _clear_first(self) -> None:
        """The first session of all did not come to its end: what it noted is worth nothing."""
        keep = {b"lock.yml", b"chars_to_quote", b"special_escapes", NOTE}
        for name in self.data.listdir():
            if name not in keep:
                self.data.append(name).delete()
                self.went_back = self.went_back or name != b"increments"
        self.data.setdata()
        self.increments.setdata()
        self.increments.mkdir()

    def mirror_time(self) -> int:
        """When the newest session was, in seconds since 1970; 0 before the first."""
        return int(self.shadow.get_mirror_time(refresh=True))

    def _refuse_without_mark(self) -> None:
        """A session's statistics come after its mark: without one it is gone, not a first one killed.

        Raises Failed.
        """
        if told := self.told_of():
            raise Failed(
                "damaged",
                "nothing marks the newest session any more: if the mirror is as that of"
                f" {stamp(told[-1])} has left it, make {os.fsdecode(self.data.path)}/current_mirror."
                f"{stamp(told[-1])}.data",
            )

    def told_of(self) -> list[int]:
        """The times of all sessions that have left statistics, oldest first."""
        return sorted({rp.getinctime() for rp in self.files(b"session_statistics")})

    def sessions(self) -> list[int]:
        """The times of all sessions that are whole, oldest first. Raises Failed."""
        markers = [rp.getinctime() for rp in self.files(b"current_mirror")]
        if not markers:
            self._refuse_without_mark()
            return []
        times = {rp.getinctime() for rp in self.files(b"mirror_metadata")}
        return sorted(t for t in times if t <= min(markers))

    def close(self) -> None:
        """Let others at it."""
        self._unlock(exclusive=True)

    # -- whose it is

    def owner(self) -> dict[str, object]:
        """The job and host that it belongs to; {} before the first session, or if others made it."""
        mark = self.data.append(NOTE)
        if not mark.lstat():
            return {}
        try:
            found = json.loads(mark.get_bytes())
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def claim(self, host: str, tags: list[str], *, write: bool = True) -> None:
        """It belongs to one job: what another keeps would be taken for changes of the first's.

        From the first session on, that is. Raises Failed for another's.
        """
        found = self.owner()
        new: dict[str, object] = {**found, "host": host, "tags": tags}
        begun = bool(self.sessions())
        if begun and not found and (mark := self.data.append(NOTE)).lstat():
            raise Failed(
                "damaged",
                f"nobody knows whose mirror this is: {os.fsdecode(mark.path)} cannot be understood;"
                " look what is in the mirror, and remove that file",
            )
        if begun and found and _job_of(found) != _job_of(new):
            raise Failed(
                "refused",
                f"the repository is a mirror of {_job_of(found)}, and this is {_job_of(new)}: give"
                " this job a repository of its own",
            )
        if write and found != new:
            self._write(NOTE, json.dumps(new).encode())

    def _write(self, name: bytes, content: bytes) -> None:
        """A file of ours, whole or as it was before, whenever the power fails."""
        path = os.path.join(self.data.path, name)
        with open(path + NEW, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + NEW, path)
        self.data.fsync()

    # -- metadata

    def nodes(self, when: int) -> Iterator[Meta]:
        """What the session of that time holds, by the metadata."""
        from rdiffbackup import meta_mgr

        found = meta_mgr.get_meta_manager(True).get_metas_at_time(when)
        if not found:
            raise Failed("damaged", f"the metadata of {stamp(when)} are missing")
        return (to_meta(rorp) for rorp in found)

    def missing_files(self, when: int) -> Iterator[Index]:
        """Files of the newest session, `when`, that the mirror has not."""
        from rdiffbackup import meta_mgr
        from rdiffbackup.locations.map import longnames

        for node in meta_mgr.get_meta_manager(True).get_metas_at_time(when) or ():
            if node.isreg() and not longnames.get_mirror_rp(self.base, node).lstat():
                yield node.index


def _job_of(note: dict[str, object]) -> str:
    """Such as "capkeep:system on lab"; other tags may change."""
    tags = note.get("tags")
    words = [str(t) for t in tags] if isinstance(tags, list) else []
    own = [t for t in words if t.startswith("capkeep:")]
    return f"{' '.join(own or words)} on {note.get('host')}"


def session_id(when: int) -> str:
    """A session's name: its second, in the eight digits that every id of a snapshot begins with."""
    return f"{when:08x}"


def stamp(when: int) -> str:
    """A session's time for people and programs."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def await_new_second(after: int) -> None:
    """Sessions are known by their second."""
    while int(time.time()) <= after < time.time() + SECOND:
        time.sleep(0.05)


# -- rdiff-backup's nodes and ours


def to_rorp(meta: Meta) -> Node:
    """A node of the other half as rdiff-backup's code knows it."""
    from rdiff_backup import rpath
    from rdiffbackup.meta import acl_posix, ea

    data: dict[str, object] = {
        "type": meta.kind, "size": meta.size, "perms": meta.perms, "uid": meta.uid,
        "gid": meta.gid, "uname": meta.uname or None, "gname": meta.gname or None,
        "inode": meta.inode, "devloc": meta.device, "nlink": max(1, meta.nlink),
        "ea": ea.ExtendedAttributes(meta.where, dict(meta.xattrs)),
    }  # fmt: skip
    acl = data["acl"] = acl_posix.AccessControlLists(meta.where)
    if meta.acl or meta.default_acl:
        acl.entry_list = _acl(meta.acl or _basic(meta.perms))
        acl.default_entry_list = _acl(meta.default_acl) if meta.default_acl else None
    if meta.kind not in ("sym", "dev"):
        data["mtime"] = meta.mtime
    if meta.kind == "sym":
        data["linkname"] = meta.link
    if meta.kind == "dev":
        data["devnums"] = meta.numbers
    found: Node = rpath.RORPath(meta.where, data)
    return found


def _basic(perms: int) -> tuple[AclEntry, ...]:
    """The access list that a file without one has."""
    return tuple(
        (letter, -1, "", perms >> shift & 7) for letter, shift in (("U", 6), ("G", 3), ("O", 0))
    )


def _acl(entries: tuple[AclEntry, ...]) -> list[tuple[str, tuple[int, None] | None, int]]:
    """By number alone: by a name, an entry could be somebody else's one day."""
    return [
        (tag, None if number < 0 else (number, None), perms) for tag, number, _, perms in entries
    ]


def to_meta(rorp: Node) -> Meta:
    """A node of the metadata, for the other half. Raises Failed for what no node is."""
    data = rorp.data

    def number(name: str, default: int = 0) -> int:
        value = data.get(name, default)
        return value if isinstance(value, int) else default

    def word(name: str) -> str:
        value = data.get(name)
        return value if isinstance(value, str) else ""

    link, numbers = data.get("linkname"), data.get("devnums")
    acl, xattrs = data.get("acl"), data.get("ea")
    attributes: dict[bytes, bytes] = getattr(xattrs, "attr_dict", {})
    return Meta(
        where=rorp.index, kind=word("type"), perms=number("perms"), uid=number("uid"), gid=number("gid"),
        uname=word("uname"), gname=word("gname"), mtime=number("mtime"), size=number("size"),
        nlink=number("nlink", 1), inode=number("inode"), device=number("devloc"),
        link=link if isinstance(link, bytes) else b"",
        numbers=numbers if isinstance(numbers, tuple) else ("", 0, 0),
        xattrs=tuple((os.fsencode(k), v or b"") for k, v in attributes.items()),
        acl=_entries(getattr(acl, "entry_list", None)),
        default_acl=_entries(getattr(acl, "default_entry_list", None)), sha1=word("sha1"),
    )  # fmt: skip


def _entries(found: object) -> tuple[AclEntry, ...]:
    entries = found if isinstance(found, list) else []
    return tuple(
        (tag, -1 if pair is None or pair[0] is None else pair[0], (pair and pair[1]) or "", perms)
        for tag, pair, perms in entries
    )


class Contents:
    """What files held in the session of a time; asked for in the order of the metadata."""

    def __init__(self, repository: Repository, when: int) -> None:
        self._shadow = repository.shadow
        self._shadow.init_loop(repository.data, repository.base, repository.increments, when)

    def nodes(self) -> Iterator[tuple[Meta, Node]]:
        """The nodes, each with rdiff-backup's own."""
        for rorp in self._shadow._get_mirror_rorp_iter(None, True):  # noqa: SLF001
            yield to_meta(rorp), rorp

    def open(self, meta: Meta, rorp: Node) -> io.BufferedIOBase:
        """A file's content, put together from the mirror and the increments."""
        found: io.BufferedIOBase = self._shadow.rf_cache.get_fp(meta.where, rorp)
        return found

    def close(self) -> None:
        """All has been asked for."""
        self._shadow.finish_loop()
