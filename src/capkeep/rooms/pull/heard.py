"""What a target says, put together anew from a fixed vocabulary; pure.

A target may be hostile: nothing of it goes on to the runner but named fields of fixed types and
bounded lengths. What it says stays its own word; what it is not asked is dropped.
"""

import re
from collections.abc import Callable
from typing import Final

from capkeep.engines.base import Cause, Summary
from capkeep.errors import Failure
from capkeep.kernel.facts import Facts
from capkeep.plan import codec
from capkeep.plan.codec import DecodeError
from capkeep.plan.model import Job
from capkeep.rooms.protocol import Message, ProtocolError

Field = Callable[[object], object]
TEXT_MOST: Final = 1 << 14  # characters
PATH_MOST: Final = 4096 * 4  # characters: a path's bytes (PATH_MAX), as they may be shown
ITEMS_MOST: Final = 1000  # of a list
PATTERNS_MOST: Final = 10_000
NUMBER_MOST: Final = 1 << 63
CIRCLE: Final = 1 << 64  # `rooms.manifest.CIRCLE`
KINDS: Final = frozenset(
    ("dir", "file", "link", "other", "symlink", "fifo", "dev", "chardev", "socket", "unknown", "")
)
_HEX: Final = re.compile(r"[0-9a-f]{0,128}")
_ODD: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_SNAPSHOT: Final = re.compile(r"[0-9A-Za-z._:+@-]{0,256}")
# Whose proof it is: of the target's room, and of the engine there. Its wire's end is ours.
PROCESSES: Final = {"room": "target", "engine": "target engine"}


class Rebuilder:
    """Makes events anew; of paths that only a job's own may be named it knows the job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._sources = set(job.include)  # those that have not been told of

    def event(self, said: Message) -> Message | None:
        """The same event as one of ours, or None for what goes no further. Raises ProtocolError."""
        event = said.get("event")
        if event == "proof":
            return _proof(said)
        if event == "live":
            return {"event": "live", "files": [self._live(f) for f in _list(said.get("files"))]}
        if event == "manifest":
            return self._manifest(said)
        fields = _EVENTS.get(event) if isinstance(event, str) else None
        if fields is None:
            return None
        if event == "source":
            self._take_source(_path(said.get("path")))
        return {"event": event, **{name: make(said.get(name)) for name, make in fields.items()}}

    def _take_source(self, path: str) -> None:
        """Each is told of once: whoever asked remembers them all."""
        if path not in self._sources:
            raise ProtocolError("a source that is not the job's, or told of before")
        self._sources.discard(path)

    def result(self, said: Message) -> Message:
        """The one result. Raises ProtocolError."""
        failure = said.get("failure")
        if failure is not None and failure not in list(Failure):
            failure = Failure.ENGINE
        code = said.get("exit_code")
        made: Message = {
            "exit_code": _number(code) if code is not None else None,
            "failure": failure,
            **{name: _text(said.get(name)) for name in ("text", "hint", "engine", "engine_words")},
            "summary": _summary(said.get("summary")),
        }
        if "canary_seen" in said:
            made["canary_seen"] = said["canary_seen"] is True
            made["snapshot"] = _match(_SNAPSHOT, said.get("snapshot"))
        return made

    def _own_path(self, value: object) -> str:
        path = _path(value)
        if not self._job.holds(path):
            raise ProtocolError("a path is not the job's")
        return path

    def _live(self, value: object) -> Message:
        said = _dict(value)
        made: Message = {"path": self._own_path(said.get("path"))}
        if "missing" in said:
            return {**made, "missing": _text(said["missing"])}
        for name, make in _LIVE.items():
            if name in said:
                made[name] = make(said[name])
        return made

    def _manifest(self, said: Message) -> Message:
        files = []
        for item in _list(said.get("files")):
            path, size, mtime, stayed, content = _five(item)
            files.append([
                self._own_path(path), _number(size), _number(mtime), _flag(stayed),
                _match(_HEX, content),
            ])  # fmt: skip
        return {
            "event": "manifest", "files": files,
            **{name: _match(_HEX, said.get(name)) for name in ("nonce", "check")},
            **{name: _place(said.get(name)) for name in ("begin", "end")},
        }  # fmt: skip


def differing(job: Job, said: Message) -> str:
    """What the target keeps otherwise than this job says, in words; "" where both are the same.

    Raises ProtocolError.
    """
    theirs = {name: set(_strings(said.get(name), PATTERNS_MOST)) for name in ("include", "exclude")}
    for name, ours in (("include", set(job.include)), ("exclude", set(job.exclude))):
        if more := sorted(theirs[name] - ours):
            return f"its {name} has {more[0][:200]}, which this job's has not"
        if less := sorted(ours - theirs[name]):
            return f"this job's {name} has {less[0][:200]}, which its own has not"
    for name, own in (("one_file_system", job.one_file_system), ("canary", bool(job.canary))):
        if (said.get(name) is True) != own:
            return f"it has another {name.replace('_', '-')} than this job"
    return ""


def _proof(said: Message) -> Message | None:
    process = PROCESSES.get(str(said.get("process")))
    if process is None:
        return None
    try:
        facts = codec.from_plain(Facts, said.get("facts"))
    except (DecodeError, RecursionError, OverflowError) as error:
        raise ProtocolError("a proof that proves nothing") from error
    return {
        "event": "proof", "process": process, "facts": codec.to_plain(facts),
        "weaker": list(_strings(said.get("weaker"))),
        "accepted": list(_strings(said.get("accepted"))),
    }  # fmt: skip


# -- fields: each raises ProtocolError for what is not its own


def _number(value: object) -> int:
    if type(value) is not int or not -NUMBER_MOST <= value < NUMBER_MOST:
        raise ProtocolError("expected a number")
    return value


def _place(value: object) -> int:
    """On the circle of a manifest's turns."""
    if type(value) is not int or not 0 <= value < CIRCLE:
        raise ProtocolError("expected a place on the circle")
    return value


def _seconds(value: object) -> float:
    if type(value) not in (int, float) or not isinstance(value, (int, float)):
        raise ProtocolError("expected seconds")
    if not 0 <= value < NUMBER_MOST:  # no NaN either
        raise ProtocolError("expected seconds")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError("expected true or false")
    return value


def _text(value: object) -> str:
    """Clipped rather than refused; nothing is "" too."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ProtocolError("expected a text")
    return _plain(value if len(value) <= TEXT_MOST else value[:TEXT_MOST] + "…")


def _path(value: object) -> str:
    if not isinstance(value, str) or len(value) > PATH_MOST:
        raise ProtocolError("expected a path")
    return _plain(value)


def _plain(text: str) -> str:
    """Of surrogates those alone that stand for a byte (PEP 383); nobody can write down the others."""
    return _ODD.sub("\ufffd", text)


def _strings(value: object, most: int = ITEMS_MOST) -> tuple[str, ...]:
    return tuple(_text(one) for one in _list(value, most))


def _texts(value: object) -> list[str]:
    return list(_strings(value))


def _list(value: object, most: int = ITEMS_MOST) -> list[object]:
    if not isinstance(value, list) or len(value) > most:
        raise ProtocolError(f"expected a list of at most {most}")
    return value


def _dict(value: object) -> Message:
    if not isinstance(value, dict) or len(value) > ITEMS_MOST:
        raise ProtocolError("expected an object")
    return value


def _five(value: object) -> list[object]:
    items = _list(value)
    if len(items) != 5:
        raise ProtocolError("a file has a path, a size, a time and a sum")
    return items


def _match(pattern: re.Pattern[str], value: object) -> str:
    text = _text(value)
    if not pattern.fullmatch(text):
        raise ProtocolError("expected a name or a sum")
    return text


def _sum(value: object) -> str:
    return _match(_HEX, value)


def _kind(value: object) -> str:
    if not isinstance(value, str) or value not in KINDS:
        raise ProtocolError("expected a kind of file")
    return value


def _cause(value: object) -> str:
    return str(value) if value in list(Cause) else Cause.UNKNOWN


def _sums(value: object) -> dict[str, str]:
    return {_text(name): _sum(one) for name, one in _dict(value).items()}


def _summary(value: object) -> Message | None:
    """An engine's counts; what is none of them is dropped."""
    if value is None:
        return None
    said = _dict(value)
    made: Message = {}
    for name in Summary._fields:
        if name in said:
            made[name] = _SUMMARY.get(name, _number)(said[name])
    return made


_SUMMARY: Final[dict[str, Field]] = {
    "snapshot": lambda value: _match(_SNAPSHOT, value),
    "seconds": _seconds,
    "dry_run": _flag,
}
_LIVE: Final[dict[str, Field]] = {
    "kind": _kind,
    **dict.fromkeys(("mode", "uid", "gid", "size", "mtime", "ctime", "above"), _number),
    "content": _sum,
    "attributes": _sums,
    "foreign": _texts,
}
_EVENTS: Final[dict[str, dict[str, Field]]] = {
    "progress": {
        **dict.fromkeys(("files", "total_files", "bytes", "total_bytes"), _number),
        "current": _texts,
        "seconds_left": _number,
    },
    "message": {"text": _text},
    "warning": {"text": _text},
    "source": {
        "path": _path, "exists": _flag, "kind": _kind, "empty": _flag, "mount_point": _flag,
    },
    "unreadable": {"path": _path, "cause": _cause, "detail": _text},
    "left-out": {"path": _path, "detail": _text},
}  # fmt: skip
