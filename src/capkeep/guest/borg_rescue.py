"""Brings archives back that a repository's manifest does not list any more, though it holds them.

Whoever may add to a repository writes its manifest, and so can omit what others have added. What an
archive is made of stays where it was; its id is all that is needed to list it again. He can also list
what is no archive, or an archive under other names, which stops everybody who works on the list: such
entries are taken out, and an archive has the name and the time that it says itself. What cannot be
read now, or not be verified, is no such thing: once it is not listed, the next removal takes its data.
"""

import json
from collections import Counter
from collections.abc import Container, Iterable
from typing import Any

AGES_AHEAD = "2200"  # as its times begin; a list is of a later time than the one before
ID_LENGTH = 32  # bytes
LONGEST = 255  # bytes of a name that a list holds
SHORT_DIGITS = 8  # of an id, in a name
Entry = tuple[bytes, bytes, bytes]  # name, id, time
NO_TIME = "1970-01-01T00:00:00.000000"  # of an archive whose own is none, which no list can hold


class Unreadable(Exception):
    """It is there, and is damaged or sealed by somebody else."""


def rescue(archiver, path: str) -> int:
    """List the archives again whose ids are in that file, and put the list in order.

    Says which were missing, which are lost, which cannot be read, and how many entries were wrong.
    """
    from borg.logger import setup_logging
    from borg.remote import RemoteRepository

    with open(path, encoding="ascii") as file:
        wanted = [bytes.fromhex(word) for word in file.read().split()]
    setup_logging(level="warning", json=True)
    args = archiver.Archiver().parse_args(["list", "--log-json", "::"])
    with RemoteRepository(
        args.location.omit_archive(), exclusive=True, lock_wait=args.lock_wait, args=args
    ) as repository:
        print(json.dumps(_put_in_order(repository, wanted)))
    return 0


def _put_in_order(repository, wanted: list[bytes]) -> dict[str, object]:
    from borg.helpers import Manifest

    opener = _Opener(repository)
    key = opener.key(wanted)
    manifest, nonsense = None, 0
    before: list[Entry] = []
    try:
        if key is not None:  # otherwise nobody's archive is there, and there is nothing to list
            manifest, _ = Manifest.load(repository, Manifest.NO_OPERATION_CHECK, key=key)
            before, nonsense = _entries(manifest)
    except opener.way:
        raise
    except Exception:  # nobody with the key has written this one: list all anew
        manifest, before, nonsense = Manifest(key, repository), [], 1
    listed = {archive for _, archive, _ in before}
    right, lost, unreadable = {}, [], []
    for archive in dict.fromkeys((*wanted, *(one for _, one, _ in before))):
        try:
            item = opener.item(archive)
        except Unreadable:
            unreadable.append(archive)
            continue
        if item is not None:
            right[archive] = item
        elif archive in wanted:
            lost.append(archive)
    entries = _named(right, before, frozenset(unreadable))
    if nonsense or Counter(entries) != Counter(before):
        _write(manifest, entries)
        repository.commit(compact=False)
    found = [one for one in wanted if one in right and one not in listed]
    return _said(found, lost, unreadable, len(set(before) - set(entries)) + nonsense)


def _said(
    found: Iterable[bytes], lost: Iterable[bytes], unreadable: Iterable[bytes], wrong: int
) -> dict[str, object]:
    ids = {"found": found, "lost": lost, "unreadable": unreadable}
    return {**{name: [one.hex() for one in of] for name, of in ids.items()}, "wrong": wrong}


class _Opener:
    """Reads archives' own descriptions, each once."""

    def __init__(self, repository) -> None:
        from borg import remote
        from borg.locking import LockError, LockErrorT

        # What is wrong with the way there ends the work; all else with what somebody has stored.
        broken = getattr(remote, "ConnectionBrokenWithHint", remote.ConnectionClosed)
        self.way = (
            remote.ConnectionClosed, broken, remote.RemoteRepository.RPCError,
            remote.PathNotAllowed, LockError, LockErrorT, OSError, MemoryError,
        )  # fmt: skip
        self._repository = repository
        self._held: dict[bytes, bytes | None] = {}
        self._damaged: set[bytes] = set()
        self._keys: dict[int, Any] = {}  # by what the sealed data begin with
        self._key: Any = None

    def _get(self, archive: bytes) -> bytes | None:
        """What is stored there; None if nothing is. Raises Unreadable."""
        from borg.crypto.low_level import IntegrityError
        from borg.repository import Repository

        if archive in self._damaged:
            raise Unreadable
        if archive not in self._held:
            try:
                self._held[archive] = self._repository.get(archive)
            except Repository.ObjectNotFound:
                self._held[archive] = None
            except IntegrityError as error:
                self._damaged.add(archive)
                raise Unreadable from error
        return self._held[archive]

    def key(self, wanted: list[bytes]):
        """The repository's key, of the kind that most archives are sealed with; None if none opens.

        Where none of these does, those that are listed are tried. The manifest alone could be of
        another kind, which anybody can write: not encrypted at all.
        """
        self._key = self._common(wanted)
        if self._key is None:
            self._key = self._common(self._listed())
        return self._key

    def _common(self, archives: Iterable[bytes]):
        opened: Counter[int] = Counter()
        for archive in archives:
            try:
                sealed = self._get(archive)
                if sealed is not None and self._item(archive, self._key_of(sealed)) is not None:
                    opened[sealed[0]] += 1
            except Unreadable:
                continue
        return self._keys[opened.most_common(1)[0][0]] if opened else None

    def _listed(self) -> list[bytes]:
        """All that the manifest names, if it is sealed at all."""
        from borg.helpers import Manifest

        try:
            key = self._key_of(self._repository.get(Manifest.MANIFEST_ID))
            if key is None:
                return []
            manifest, _ = Manifest.load(self._repository, Manifest.NO_OPERATION_CHECK, key=key)
            return [archive for _, archive, _ in _entries(manifest)[0]]
        except self.way:
            raise
        except Exception:  # whatever nonsense makes of it
            return []

    def _key_of(self, sealed: bytes):
        """The key of the kind that it says; None if that is no encryption."""
        from borg.crypto.key import (
            KeyfileNotFoundError,
            PlaintextKey,
            UnsupportedPayloadError,
            identify_key,
            key_factory,
        )

        kind = sealed[0] if sealed else -1
        if kind not in self._keys:
            try:
                plain = not sealed or identify_key(sealed) is PlaintextKey
                self._keys[kind] = None if plain else key_factory(self._repository, sealed)
            except (UnsupportedPayloadError, KeyfileNotFoundError):  # anybody can write that
                self._keys[kind] = None
        return self._keys[kind]

    def item(self, archive: bytes):
        """An archive's own description; None if it is gone, or was never an archive.

        Raises Unreadable.
        """
        return self._item(archive, self._key or self._key_of(self._get(archive) or b""))

    def _item(self, archive: bytes, key):
        from borg.crypto.low_level import IntegrityError  # of which all others are kinds
        from borg.helpers import msgpack
        from borg.item import ArchiveItem

        sealed = self._get(archive)
        if sealed is None:
            return None
        if key is None:
            raise Unreadable
        try:
            data = key.decrypt(archive, sealed)
            if hasattr(key, "unpack_and_verify_archive"):
                # As borg itself does: archives from before it sealed them so have no such seal.
                told = key.unpack_and_verify_archive(data, force_tam_not_required=True)[0]
            else:
                told = msgpack.unpackb(data)
            item = ArchiveItem(internal_dict=told)
            _ = item.name, item.time
        except IntegrityError as error:
            raise Unreadable from error
        except Exception:  # whatever nonsense makes of it
            return None
        return item


def _entries(manifest) -> tuple[list[Entry], int]:
    """Name, id and time of each, as they stand there, and how many are of no such kinds."""
    told = manifest.archives.get_raw_dict()
    found = [
        (name, values[b"id"], values[b"time"])
        for name, values in told.items()
        if isinstance(values[b"time"], bytes)
        and isinstance(values[b"id"], bytes)
        and len(values[b"id"]) == ID_LENGTH
    ]
    return found, len(told) - len(found)


def _named(right, before: list[Entry], unreadable: frozenset[bytes]) -> list[Entry]:
    """The entries that there should be; who had his own name already keeps it, if two have the same.

    What cannot be read stands as it stood.
    """
    from borg.helpers import safe_encode

    had = {(name, archive) for name, archive, _ in before}
    own = {archive: safe_encode(item.name) for archive, item in right.items()}
    order = sorted(right, key=lambda archive: (own[archive], archive) not in had)
    found: dict[bytes, tuple[bytes, bytes]] = {}
    for name, archive, time in before:
        if archive in unreadable:
            time_ = _time(time.decode(errors="replace"))
            found[_free(name, archive, found)] = (archive, time_)
    for archive in order:
        found[_free(own[archive], archive, found)] = (archive, _time(right[archive].time))
    return [(name, *entry) for name, entry in found.items()]


def _free(name: bytes, archive: bytes, taken: Container[bytes]) -> bytes:
    """That name, or one like it that nobody has; others may have names of any kind."""
    found, number = name if len(name) <= LONGEST else b"", 1
    while not found or found in taken:
        end = f".{archive.hex()[:SHORT_DIGITS]}{f'.{number}' if number > 1 else ''}".encode()
        found, number = name[: LONGEST - len(end)] + end, number + 1
    return found


def _time(text: str) -> bytes:
    """As the list holds it."""
    from borg.helpers import parse_timestamp

    try:
        parse_timestamp(text)
    except ValueError:
        return NO_TIME.encode()
    return text.encode()


def _write(manifest, entries: list[Entry]) -> None:
    manifest.archives = type(manifest.archives)()
    manifest.archives.set_raw_dict({n: {b"id": one, b"time": time} for n, one, time in entries})
    if str(manifest.timestamp) > AGES_AHEAD:  # borg goes on from there, and cannot
        manifest.timestamp = None
    manifest.write()
