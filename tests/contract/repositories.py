"""Repositories: what is refused, what is removed, what is damaged, and what an interruption leaves."""

from tests.contract.declared import BORG, RDIFF, Differs, behaviour, yes
from tests.contract.scenes import MIB, Scenes

REFUSED = "What fails has a name"
KEYS = "Passwords"
LOCKED = "Two at a time"
STOPPED = "Interruption"
DAMAGE = "Damage"
FULL = "A full disk"
REMOVED = "Retention"
STREAM = "A dump through a pipe"


@behaviour(REFUSED, "another password: wrong-password", Differs(RDIFF, "there is none: it opens"))
def wrong_password(scenes: Scenes) -> str:
    told = set(scenes.refused.wrong.values())
    return "there is none: it opens" if told == {""} else yes(told == {"wrong-password"}, told)


@behaviour(REFUSED, "no repository: no-repository")
def no_repository(scenes: Scenes) -> str:
    told = set(scenes.refused.absent.values())
    return yes(told == {"no-repository"}, told)


@behaviour(REFUSED, "a snapshot that is not there")
def no_snapshot(scenes: Scenes) -> str:
    told = str(scenes.refused.unknown.result.get("text"))
    return yes("no such snapshot" in told or "no snapshot" in told, told)


@behaviour(REFUSED, "a repository that is there is not made again")
def made_once(scenes: Scenes) -> str:
    again = scenes.refused.again
    return yes(again.ok and "was there already" in str(again.result["text"]), again)


@behaviour(
    KEYS, "another password opens the repository too",
    Differs(BORG, "refused: has one password"),
    Differs(RDIFF, "refused: has no password"),
)  # fmt: skip
def another_password(scenes: Scenes) -> str:
    keys = scenes.keys
    if keys.added.failure == "refused":
        return f"refused: {str(keys.added.result['text']).partition(' repository ')[2]}"
    return yes(keys.added.ok and not keys.opened, keys.added)


@behaviour(
    KEYS, "and one whose key was removed does not",
    Differs(BORG, "refused: has one password"),
    Differs(RDIFF, "refused: has no password"),
)  # fmt: skip
def removed_password(scenes: Scenes) -> str:
    keys = scenes.keys
    if keys.added.failure == "refused":
        return f"refused: {str(keys.added.result['text']).partition(' repository ')[2]}"
    return yes(keys.closed == "wrong-password", keys.closed)


@behaviour(
    LOCKED, "backups go on beside each other",
    Differs((*BORG, *RDIFF), "the second one: locked"),
)  # fmt: skip
def side_by_side(scenes: Scenes) -> str:
    another = scenes.moving.another
    return yes(not another, f"the second one: {another}")


@behaviour(LOCKED, "nothing is removed during a backup: locked")
def removal_meanwhile(scenes: Scenes) -> str:
    return yes(scenes.moving.removal == "locked", scenes.moving.removal or "removed")


@behaviour(STOPPED, "an engine that is killed before it reads: interrupted")
def killed_at_start(scenes: Scenes) -> str:
    return yes(scenes.stopped.at_start == "interrupted", scenes.stopped.at_start)


@behaviour(STOPPED, "or while it reads")
def killed(scenes: Scenes) -> str:
    return yes(scenes.stopped.killed == "interrupted", scenes.stopped.killed)


@behaviour(STOPPED, "one that is asked to end has failed, too")
def terminated(scenes: Scenes) -> str:
    return yes(scenes.stopped.asked, "success")


@behaviour(
    STOPPED, "of none is there a snapshot, nor where the caller leaves, or all is killed at once"
)
def no_half(scenes: Scenes) -> str:
    return yes(scenes.stopped.more == 0, f"{scenes.stopped.more} snapshots")


@behaviour(STOPPED, "the next backup is complete")
def again(scenes: Scenes) -> str:
    return yes(scenes.stopped.again.ok, scenes.stopped.again)


@behaviour(STOPPED, "and the next removal is let in")
def removal_after(scenes: Scenes) -> str:
    return yes(not scenes.stopped.removal, scenes.stopped.removal)


@behaviour(STOPPED, "no data is damaged by any of it: a check of all data passes")
def sound_after(scenes: Scenes) -> str:
    return yes(scenes.stopped.sound.ok, scenes.stopped.sound)


@behaviour(DAMAGE, "changed data is found by a check that reads it: damaged")
def damage_read(scenes: Scenes) -> str:
    return yes(scenes.damage.loud.failure == "damaged", scenes.damage.loud.failure)


@behaviour(DAMAGE, "by one that reads none it is not: that is what `read-data` is for")
def damage_unread(scenes: Scenes) -> str:
    return yes(scenes.damage.quiet.ok, scenes.damage.quiet.failure)


@behaviour(DAMAGE, "a restore of it fails: damaged")
def damage_restored(scenes: Scenes) -> str:
    failure = scenes.damage.restore.failure
    return yes(failure == "damaged", f"a restore of it fails: {failure}")


@behaviour(DAMAGE, "missing data is found by a check that reads none")
def missing(scenes: Scenes) -> str:
    damage = scenes.damage
    if damage.missing.failure == "damaged":
        return "yes"
    return yes(
        False, "by one that reads all" if damage.missing_read.failure == "damaged" else "never"
    )


@behaviour(FULL, "has a name: no-space")
def full(scenes: Scenes) -> str:
    return yes(scenes.full.made.failure == "no-space", scenes.full.made)


@behaviour(FULL, "earlier snapshots are whole")
def full_earlier(scenes: Scenes) -> str:
    return yes(scenes.full.chosen.get("[a]") == "one", scenes.full.chosen)


@behaviour(FULL, "with space again the next backup is complete, and there is no half one")
def full_later(scenes: Scenes) -> str:
    return yes(scenes.full.later.ok and scenes.full.snapshots == 2, scenes.full.later)


@behaviour(REMOVED, "what need not stay is removed, and only that")
def removed(scenes: Scenes) -> str:
    history = scenes.history
    ids = [s["id"] for s in history.listed]
    return yes([s["id"] for s in history.left] == ids[1:], history.removed)


@behaviour(REMOVED, "its data goes too")
def freed(scenes: Scenes) -> str:
    history = scenes.history
    return yes(
        history.size_after < history.size_before - MIB, (history.size_before, history.size_after)
    )


@behaviour(REMOVED, "a rehearsal tells what would be removed, and removes nothing")
def rehearsal(scenes: Scenes) -> str:
    (part,) = scenes.history.rehearsed.all("part")
    return yes(not part["failure"] and len(scenes.history.left) == 2, scenes.history.rehearsed)


@behaviour(REMOVED, "what stays is whole, by a check of all data")
def stays(scenes: Scenes) -> str:
    return yes(scenes.stopped.sound.ok, scenes.stopped.sound)


def _stay(scenes: Scenes) -> list[int]:
    ids = [s["id"] for s in scenes.history.listed]
    decisions = scenes.history.rehearsed.all("decision")
    return sorted(ids.index(m["id"]) for m in decisions if m["keep"])


@behaviour(REMOVED, "the newest complete snapshot stays, though newer ones are partial")
def complete_stays(scenes: Scenes) -> str:
    return yes({0, 2} <= set(_stay(scenes)), _stay(scenes))


@behaviour(
    REMOVED, "a snapshot goes though an older one stays", Differs(RDIFF, "the oldest go first"),
)  # fmt: skip
def any_goes(scenes: Scenes) -> str:
    stay = _stay(scenes)
    return yes(stay == [0, 2], "the oldest go first" if stay == [0, 1, 2] else stay)


@behaviour(
    STREAM, "becomes one file of a snapshot", Differs(RDIFF, "refused: it is written to a file first"),
)  # fmt: skip
def streamed(scenes: Scenes) -> str:
    stream = scenes.stream
    if stream.refused:
        return "refused: it is written to a file first"
    assert stream.whole
    paths = [s["paths"] for s in stream.listed]
    return yes(stream.whole.ok and paths == [["/rows.sql"]], (stream.whole, paths))


@behaviour(
    STREAM, "of half a dump there is no snapshot",
    Differs(RDIFF, "refused: it is written to a file first"),
)  # fmt: skip
def half_streamed(scenes: Scenes) -> str:
    stream = scenes.stream
    if stream.refused:
        return "refused: it is written to a file first"
    return yes(stream.after_half == 1, stream.after_half)
