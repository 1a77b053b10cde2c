"""In the place of a reader's borg: what somebody with its password can try. Run by borg's Python.

usage: borg_hostile.py TOOLS WHAT; says in JSON how each attempt ended.
"""

import json
import os
import sys

sys.path[0] = sys.argv[1]
import launch

launch.inherit()
import borg_locks

borg_locks.own(os.environ["BORG_BASE_DIR"])
from borg import archiver
from borg.helpers import Manifest, msgpack
from borg.logger import setup_logging
from borg.remote import RemoteRepository

setup_logging(level="critical")
ends = {}


def opened(**more):
    args = archiver.Archiver().parse_args(["list", "--log-json", "::"])
    options = {"exclusive": True, "lock": what != "unlocked", **more}
    return RemoteRepository(args.location.omit_archive(), lock_wait=5, args=args, **options)


def attempt(name, action):
    try:
        ends[name] = f"done: {action()!r:.60}"
    except BaseException as error:
        kind = getattr(error, "exception_class", "") or type(error).__name__
        ends[name] = kind


def remove_all(repository):
    for one in ids:
        repository.delete(one)
    repository.commit(compact=True, cleanup_commits=True)


def replace_all(repository):
    for one in ids:
        repository.put(one, b"not what it was")
    repository.commit()


def elsewhere():
    os.environ["BORG_REPO"] = "ssh://capkeep/etc"
    opened()


def huge(repository):
    try:
        while True:
            os.write(repository.stdin_fd, b"\xdf\xff\xff\xff\xff" + b"\x00" * 65536)
    except BlockingIOError:
        pass
    repository.call("load_key", {})


def remade(archive, name, *, seal="none"):
    """Another archive of the same files; with a stale seal of its own, as borg 1.2.4 renames one."""
    told = msgpack.unpackb(key.decrypt(archive, repository.get(archive)))
    told[b"name"] = name.encode()
    if seal == "none":
        told.pop(b"tam", None)
    data = msgpack.packb(told)
    one = key.id_hash(data)
    repository.put(one, key.encrypt(data))
    return one


what = sys.argv[2]
repository = opened()
manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)
ids = [one for one in repository.list() if one != Manifest.MANIFEST_ID]
with repository:
    if what == "everything":
        nonce = repository.get_free_nonce()
        attempt("nonce back", lambda: repository.commit_nonce_reservation(1, nonce))
        attempt("nonce far", lambda: repository.commit_nonce_reservation(1 << 63, nonce))
        attempt("key", lambda: repository.save_key(b"mine"))
        attempt("destroy", repository.destroy)
        attempt("repair", lambda: repository.check(repair=True))
        attempt("locks", repository.break_lock)
        attempt("remove", lambda: remove_all(repository))
        attempt("replace", lambda: replace_all(repository))
        attempt("open twice", lambda: repository.open("/etc"))
        attempt("migrate", lambda: repository.call("migrate_lock", {"old_id": 1, "new_id": 2}))
        attempt("inside", lambda: repository.call("_delete", {"id": ids[0]}))
        manifest.archives.clear()
        manifest.write()
        repository.commit()
    elif what == "unlocked":
        place = os.environ["BORG_REPO"].removeprefix("ssh://capkeep")
        ends["locks"] = " ".join(name for name in os.listdir(place) if name.startswith("lock"))
        nonce = repository.get_free_nonce()
        attempt("nonce", lambda: repository.commit_nonce_reservation(nonce + 9, nonce))
        attempt("list", lambda: repository.put(Manifest.MANIFEST_ID, b"mine"))
        attempt("new", lambda: repository.put(bytes(range(32)), b"mine"))
        attempt("key", lambda: repository.save_key(b"mine"))
        attempt("commit", repository.commit)
        attempt("rollback", repository.rollback)
        attempt("read", lambda: len(repository.get(ids[0])) > 0)
    elif what == "pipelined":
        # All at once, with no answer awaited, each twice, and the first of all after a rollback too.
        def flood():
            for one in (*ids, *ids):
                repository.put(one, b"not what it was", wait=False)
            return repository.async_response(wait=True)

        attempt("flood", flood)
        attempt("rollback", repository.rollback)
        attempt("flood again", flood)
        new = bytes(range(32))
        for text in (b"first", b"second"):
            repository.put(new, text, wait=False)
        repository.async_response(wait=True)
        attempt("commit", repository.commit)
        attempt("kept", lambda: repository.get(new) == b"first" or 1 / 0)
        for one in ids:
            assert len(repository.get(one)) != len(b"not what it was")
    elif what == "aliases":
        oldest, newest = manifest.archives.list(sort_by=["ts"])
        del manifest.archives[newest.name]
        for name in ("alias", "other"):
            manifest.archives[name] = (newest.id, oldest.ts.replace(year=2001))
        manifest.write()
        repository.commit()
    elif what == "list":
        # An archive under another name and under two, one that is none, times that are none.
        oldest, newest = manifest.archives.list(sort_by=["ts"])
        raw = manifest.archives.get_raw_dict()
        raw.clear()
        for name, one, time in (
            (oldest.name, newest.id, b"9999-12-31T23:59:59.999999"), (newest.name, oldest.id, b"never"),
            ("alias", newest.id, b"1"), ("none", bytes(31) + b"1", b"2000-01-01T00:00:00.000000"),
            ("short", b"", b""), ("odd", 7, 8),
        ):  # fmt: skip
            raw[name.encode()] = {b"id": one, b"time": time}
        repository.put(
            Manifest.MANIFEST_ID, key.encrypt(key.pack_and_authenticate_metadata({
                "version": 1, "archives": raw, "timestamp": manifest.timestamp,
                "config": manifest.config, "item_keys": tuple(manifest.item_keys),
            })),
        )  # fmt: skip
        repository.commit()
    elif what == "older":
        # One without a seal, one with a wrong one, what nobody can read, and names that others have.
        oldest, newest = manifest.archives.list(sort_by=["ts"])
        old = remade(oldest.id, "old")
        stale = remade(newest.id, "stale", seal="stale")
        twin = remade(newest.id, oldest.name)
        taken = f"{oldest.name}.{twin.hex()[:8]}"
        other = remade(oldest.id, taken)
        strange = {
            "junk": b"\5" + bytes(200),
            "plain": b"\2" + bytes(99),
            "file": bytes(99),
            "none": b"",
        }
        for number, (name, data) in enumerate(strange.items()):
            repository.put(bytes(31) + bytes([number + 1]), data)
            ends[name] = (bytes(31) + bytes([number + 1])).hex()
        for name, one, like in (("old", old, oldest), ("stale", stale, newest), (taken, other, oldest),
                                ("junk", bytes.fromhex(ends["junk"]), newest)):  # fmt: skip
            manifest.archives[name] = (one, like.ts)
        manifest.write()
        repository.commit()
        for name, one in (("old", old), ("stale", stale), ("twin", twin), (taken, other)):
            ends[name] = one.hex()
    elif what == "names":
        raw = manifest.archives.get_raw_dict()
        ends.update({name.decode(): values[b"id"].hex() for name, values in raw.items()})
    elif what == "future":
        manifest.archives.clear()
        manifest.timestamp = "9999-12-31T23:59:59.999998"
        manifest.write()
        repository.commit()
    elif what == "nonsense":
        repository.put(Manifest.MANIFEST_ID, b"nobody can read this")
        repository.commit()
if what == "everything":
    attempt("elsewhere", elsewhere)
elif what == "huge":
    attempt("huge", lambda: huge(opened()))
print(json.dumps(ends), flush=True)
os._exit(0)
