"""In the place of a target's borg that is asked to make the repository: all that it can try.

Run by borg's Python. usage: borg_making.py TOOLS; says in JSON how each attempt ended.
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
from borg.logger import setup_logging
from borg.remote import RemoteRepository

setup_logging(level="critical")
ends = {}


def opened(**more):
    args = archiver.Archiver().parse_args(["list", "--log-json", "::"])
    place = args.location.omit_archive()
    return RemoteRepository(place, exclusive=True, lock_wait=5, args=args, **more)


def attempt(name, action):
    try:
        result = action()
        ends[name] = "done"
        return result
    except BaseException as error:
        ends[name] = getattr(error, "exception_class", "") or type(error).__name__


made = attempt("make", lambda: opened(create=True))
if made is not None:
    attempt("again", lambda: made.call("open", {"path": "/repository", "create": True}))
    attempt("key", lambda: made.save_key(b"the first key"))
    attempt("second key", lambda: made.save_key(b"another key"))
    attempt("empty key", lambda: made.save_key(b""))
    attempt("destroy", made.destroy)
    attempt("put", lambda: made.put(bytes(32), b"a manifest"))
    attempt("commit", lambda: made.commit(compact=False))
    made.close()
there = opened()
attempt("key of one that is there", lambda: there.save_key(b"another key"))
ends["has"] = there.load_key().decode()
there.close()
print(json.dumps(ends))
