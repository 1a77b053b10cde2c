"""Whether a repository still lists all that it held, where whoever adds to it writes the list.

The keeper remembers what it saw at its last visit, and is told what runs have made since. What is
not listed any more, and was not removed by the keeper, was made to disappear by somebody who may only
add: a hostile reader, or a broken one.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from capkeep.errors import Failure, StepError
from capkeep.rooms.calls import Caller, read_note, write_note

NOTE: Final = "known"
LIMIT: Final = 16 << 20  # bytes
SEEN_KEPT: Final = 20_000  # ids; more than runs are told of
ID_DIGITS: Final = 64
SHORT_DIGITS: Final = 8
NAMED: Final = 3


class Known(NamedTuple):
    """Ids of snapshots: those of this host's that were listed, and all that ever were.

    And `others`, listed too: they are brought back where somebody hides them, as what is removed
    beside them could be theirs as well; but who made them may remove them.
    """

    present: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def missing(self, listed: Iterable[str], made: Iterable[str]) -> tuple[str, ...]:
        """What should be listed and is not; `made` by runs, perhaps removed again since."""
        new = set(made) - set(self.seen)
        return tuple(sorted(({*self.present, *self.others} | new) - set(listed)))

    def own(self, listed: Iterable[str], made: Iterable[str]) -> tuple[str, ...]:
        """What this host has made of what is listed; others may remove what is theirs."""
        return tuple(sorted({*self.present, *made} & set(listed)))


def is_whole_id(text: str) -> bool:
    """Whether it can be an id of a snapshot, not its beginning, or anything else."""
    return len(text) == ID_DIGITS and not set(text) - set("0123456789abcdef")


def short(ids: Iterable[str]) -> tuple[str, ...]:
    """Their beginnings: all that restic 0.14 tells of a snapshot that it has made."""
    return tuple(one[:SHORT_DIGITS] for one in ids if len(one) >= SHORT_DIGITS)


def recall(caller: Caller) -> Known:
    """What was noted at the last visit."""
    with suppress(ValueError, TypeError, KeyError):
        noted = json.loads(read_note(_path(caller), LIMIT) or b"{}")
        return Known(
            tuple(map(str, noted["present"])), tuple(map(str, noted["seen"])),
            tuple(map(str, noted.get("others", ()))),
        )  # fmt: skip
    return Known()


def note(
    caller: Caller, known: Known, present: Iterable[str], gone: Iterable[str] = (),
    others: Iterable[str] = (),
) -> None:  # fmt: skip
    """Note what is listed now; `gone` is expected no more, whether or not it ever was."""
    left = set(gone)
    stays = [name for name in present if name not in left]
    seen = dict.fromkeys((*known.seen, *known.present, *stays, *left))
    told = {"present": stays, "seen": list(seen)[-SEEN_KEPT:]}
    if theirs := [name for name in others if name not in left]:
        told["others"] = theirs
    write_note(_path(caller), json.dumps(told, separators=(",", ":")).encode())


def write_ids(caller: Caller, name: str, ids: Iterable[str]) -> str:
    """A file that the engine's own side reads."""
    path = f"{caller.scratch}/{name}"
    with open(path, "w", encoding="ascii") as file:
        file.write("".join(f"{one}\n" for one in ids))
    return path


def write_listed(
    caller: Caller, name: str, listed: Mapping[str, str], removed: Iterable[str]
) -> str:
    """The same of all that is listed, with the names of those that are to be removed."""
    path = f"{caller.scratch}/{name}"
    told = {"listed": list(listed), "removed": {one: listed[one] for one in removed}}
    with open(path, "w", encoding="ascii") as file:
        json.dump(told, file)
    return path


class Outcome(NamedTuple):
    """What became of a list that was put in order."""

    found: tuple[str, ...] = ()  # had vanished, and are listed again
    lost: tuple[str, ...] = ()  # are gone
    wrong: int = 0  # entries of the list that were of nothing, or of another name or time
    unreadable: tuple[str, ...] = ()  # are there, and cannot be read, or not be verified


def outcome(said: bytes) -> Outcome:
    """What was brought back, and what could not be. Raises ValueError."""
    answer = json.loads(said)
    if not isinstance(answer, dict):
        raise ValueError("the engine does not say what it brought back")  # noqa: TRY004
    found, lost, wrong = answer.get("found"), answer.get("lost"), answer.get("wrong")
    unreadable = answer.get("unreadable", [])
    if not isinstance(found, list) or not isinstance(lost, list):
        raise ValueError("the engine does not say what it brought back")  # noqa: TRY004
    if not isinstance(unreadable, list):
        raise ValueError("the engine does not say what it cannot read")  # noqa: TRY004
    return Outcome(
        tuple(map(str, found)), tuple(map(str, lost)), wrong if type(wrong) is int else 0,
        tuple(map(str, unreadable)),
    )  # fmt: skip


def loss(what: Outcome) -> StepError:
    """What people are told of it."""
    words = []
    if what.found:
        words.append(
            f"{_count(what.found)} had vanished from the repository's list and were brought back"
        )
    if what.lost:
        words.append(f"{_count(what.lost)} are gone from the repository")
    if what.wrong:
        words.append(
            f"{what.wrong} entries of the list were not what they say, and were put in order"
        )
    if what.unreadable:
        words.append(
            f"{_count(what.unreadable)} cannot be read, or not be verified, and stay listed as they were"
        )
    return StepError(
        Failure.DAMAGED, "; ".join(words) + ": nothing was removed this time",
        hint="only somebody who can write to the repository does that: look at who ran what since the"
        " last visit, and at the hosts that back up to it",
    )  # fmt: skip


def hidden(ids: tuple[str, ...]) -> StepError:
    """What was brought back, or was there a moment ago, is not listed already."""
    return StepError(
        Failure.DAMAGED, f"{_count(ids)} are not listed, right after the list was put in order: nothing"
        " was removed this time", hint="somebody writes to the repository's list at this moment: look at"
        " the hosts that back up to it; the next visit of the keeper lists them again",
    )  # fmt: skip


def vanished(ids: tuple[str, ...]) -> StepError:
    """What should have stayed is not listed after others were removed; all data is there yet."""
    return StepError(
        Failure.DAMAGED, f"{_count(ids)} are not listed any more after others were removed: no data was"
        " given up", hint="the next visit of the keeper lists them again",
    )  # fmt: skip


def _count(ids: tuple[str, ...]) -> str:
    named = ", ".join(one[:SHORT_DIGITS] for one in ids[:NAMED])
    return f"{len(ids)} snapshots ({named}{', …' if len(ids) > NAMED else ''})"


def _path(caller: Caller) -> str:
    return f"{caller.call.cache_dir}/{NOTE}"
