"""The half that has the repository: drives rdiff-backup's own code, and asks the other half for files.

A program of its own, run by the interpreter that rdiff-backup was installed for. All that happens to
the repository is decided here, by rdiff-backup's code for local repositories: what increments hold is
computed from the mirror that is here. From the other half come nodes, which are looked at
(wire.from_plain, wire.Tree), and the content of files.
"""

import errno
import json
import os
import sys
import time
import traceback
from contextlib import suppress

from capkeep.guest import client_pipes
from capkeep.guest.rdiff.wire import Failed, Gone, Pipes, Refused, receive_object, send


def main() -> int:
    """The program: on a pair of pipes that it waits for, for one request.

    Arguments: REPOSITORY append|admin REPORT OWNERS.

    REPORT is a descriptor on which it tells how much it has stored, OWNERS whom the mirror's files
    belong to: "metadata", "names", "numbers".
    """
    os.environ["TZ"] = "UTC"
    time.tzset()
    os.umask(0o077)
    path, may_remove = os.fsencode(sys.argv[1]), sys.argv[2] == "admin"
    unusable = _load(sys.argv[4])
    if not client_pipes.take():
        return 0
    end = Pipes(os.dup(0), os.dup(1))
    os.dup2(2, 1)  # what rdiff-backup prints is not part of the conversation
    try:
        request = receive_object(end)
        if unusable:
            raise unusable
        told = _answer(end, path, request, may_remove=may_remove)
        os.write(int(sys.argv[3]), json.dumps(told).encode() + b"\n")
    except Failed as error:
        return _failed(end, error.kind, str(error))
    except Refused as error:
        print(f"capkeep: refused: {error}", file=sys.stderr)
        return _failed(end, "refused", f"the repository's half refused: {error}")
    except Gone:
        return 1  # whoever asked is gone: the next session finds what is left, and goes back
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return _failed(end, "no-space" if full else "engine", f"the repository: {error}")
    except SystemExit:
        return _failed(end, "engine", _last_words("rdiff-backup gave up"))
    except Exception as error:
        traceback.print_exc()
        return _failed(end, "engine", _last_words(f"rdiff-backup: {type(error).__name__}: {error}"))
    return 0


def _load(whose: str) -> Exception | None:
    """Have rdiff-backup ready; or why it is not, to be raised when there is somebody to hear of it."""
    from capkeep.guest.rdiff import library

    try:
        library.load(whose)
    except Exception as error:
        return error
    return None


def _last_words(otherwise: str) -> str:
    from capkeep.guest.rdiff import library

    return f"{otherwise}: {' '.join(library.said())}" if library.said() else otherwise


def _failed(end: Pipes, kind: str, sentence: str) -> int:
    with suppress(Gone):
        send(end, {"failed": {"kind": kind, "text": sentence}})
    return 1


def _answer(
    end: Pipes, path: bytes, request: dict[str, object], *, may_remove: bool
) -> dict[str, object]:
    """What was added to the repository: so many bytes, and which session if it was one."""
    from capkeep.guest.rdiff import asked, backup

    do = request.get("do")
    if do == "backup":
        done = backup.backup(end, path, request)
        return {"stored": done.stored, "snapshot": done.name}
    if do == "remove":
        if not may_remove:
            raise Refused("this wire may not remove anything")
        asked.remove(end, path, request)
    else:
        action = asked.ACTIONS.get(str(do))
        if action is None:
            raise Refused("an unknown request")
        action(end, path, request)
    return {"stored": 0}
