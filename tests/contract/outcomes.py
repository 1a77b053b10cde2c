"""What a backup says of itself: what was read, what was not and why, and what the gate makes of it."""

from tests.contract.declared import BORG, NEW_RESTIC, RDIFF, RESTIC, Differs, behaviour, yes
from tests.contract.scenes import MIB, Scenes
from tests.contract.stand import Heard

COMPLETE = "A complete backup"
UNREAD = "What was not read is named, with its cause"
MOVING = "What changes during a backup"


def _verdict(scenes: Scenes, scene: str, heard: Heard, **changed: object) -> str:
    return heard.verdict(scenes.stand.with_job(scene, **changed).job(scene))


def _number(heard: Heard, name: str) -> int:
    summary = heard.result.get("summary")
    value = summary.get(name) if isinstance(summary, dict) else None
    return value if isinstance(value, int) else -1


@behaviour(COMPLETE, "ends with 0, and misses nothing")
def clean(scenes: Scenes) -> str:
    made = scenes.tree.made
    return yes(made.ok and not made.all("unreadable") and not made.all("warning"), made)


@behaviour(COMPLETE, "is complete by the gate, which saw the canary in it")
def complete(scenes: Scenes) -> str:
    made = scenes.tree.made
    return yes(made.result["canary_seen"] and _verdict(scenes, "tree", made) == "complete", made)


@behaviour(
    COMPLETE, "counts its files, with the canary", Differs(RDIFF, "it counts directories too")
)
def counts(scenes: Scenes) -> str:
    count = _number(scenes.history.first, "total_files")
    return {5: "yes"}.get(count, "it counts directories too" if count > 5 else str(count))


@behaviour(COMPLETE, "tells which files are new")
def new_files(scenes: Scenes) -> str:
    counted = (
        _number(scenes.history.second, "files_new"),
        _number(scenes.history.second, "files_changed"),
    )
    return yes(counted[0] >= 1 and counted[1] >= 1, counted)


@behaviour(COMPLETE, "tells how far it is while it works")
def progress(scenes: Scenes) -> str:
    told = [n for m in scenes.moving.made.all("progress") if isinstance(n := m["bytes"], int)]
    return yes(told and told == sorted(told) and max(told) <= 64 * MIB, told)


@behaviour(COMPLETE, "by whoever may read all: what nobody else may read is in it")
def all_is_read(scenes: Scenes) -> str:
    seen = scenes.trouble.seen
    return yes(seen.result["exit_code"] == 0 and not seen.unread, seen)


@behaviour(COMPLETE, "a dry run ends with 0 and makes no snapshot")
def dry_run(scenes: Scenes) -> str:
    history = scenes.history
    made = len(history.left) != 2
    return yes(history.dry.ok and _number(history.dry, "dry_run") and not made, history.dry)


@behaviour(UNREAD, "a file that may not be read: denied")
def unreadable_file(scenes: Scenes) -> str:
    cause = scenes.trouble.blind.unread.get("secret", "silence")
    return yes(cause == "denied", cause)


@behaviour(UNREAD, "a directory that may not be read: denied")
def unreadable_directory(scenes: Scenes) -> str:
    cause = scenes.trouble.blind.unread.get("closed", "silence")
    return yes(cause == "denied", cause)


@behaviour(
    UNREAD, "also where the name is not UTF-8",
    Differs((*RESTIC, *BORG), "with a sign in place of each byte"),
)  # fmt: skip
def unreadable_name(scenes: Scenes) -> str:
    unread = scenes.trouble.blind.unread
    if unread.get("odd \udcff") == "denied":
        return "yes"
    return yes(False, "with a sign in place of each byte" if "odd \ufffd" in unread else "silence")


@behaviour(
    UNREAD, "a file that is as it was when it was kept, and may not be read any more",
    Differs((*RESTIC, *RDIFF), "silence: the canary tells"),
)  # fmt: skip
def unreadable_unchanged(scenes: Scenes) -> str:
    cause = scenes.trouble.blind.unread.get("later", "")
    return yes(cause == "denied", cause or "silence: the canary tells")


@behaviour(UNREAD, "and nothing besides")
def unreadable_only(scenes: Scenes) -> str:
    names = {name.replace("\udcff", "\ufffd") for name in scenes.trouble.blind.unread}
    return yes(names - {"later"} == {"secret", "closed", "odd \ufffd"}, names)


@behaviour(
    UNREAD, "of which the snapshot holds nothing", Differs(RDIFF, "what the session before had"),
)  # fmt: skip
def unread_not_held(scenes: Scenes) -> str:
    held = scenes.trouble.held
    assert "open" in held
    return yes(not {"secret", "inside"} & held, "what the session before had")


@behaviour(UNREAD, "a snapshot is made all the same, and it is partial")
def partial(scenes: Scenes) -> str:
    blind = scenes.trouble.blind
    told = (
        blind.result["exit_code"],
        bool(blind.result["snapshot"]),
        _verdict(scenes, "trouble", blind, canary=""),
    )
    return yes(told == (3, True, "partial"), told)


@behaviour(UNREAD, "what the job may miss does not count")
def may_miss(scenes: Scenes) -> str:
    may = ("**/secret", "**/closed", "**/odd*", "**/later")
    outcome = _verdict(scenes, "trouble", scenes.trouble.blind, canary="", may_miss=may)
    return yes(outcome == "complete", outcome)


@behaviour(UNREAD, "one source of several is not there: partial")
def missing_source(scenes: Scenes) -> str:
    missing = scenes.trouble.seen
    include = tuple(str(m["path"]) for m in missing.all("source"))
    absent = [m["path"] for m in missing.all("source") if not m["exists"]]
    outcome = _verdict(scenes, "trouble", missing, include=include)
    return yes(len(absent) == 1 and outcome == "partial", (absent, outcome))


@behaviour(UNREAD, "no source is there: failed")
def no_source(scenes: Scenes) -> str:
    nothing = scenes.trouble.nothing
    return yes(
        nothing.failure == "engine" and "none of the job's sources" in str(nothing.result["text"])
    )


@behaviour(UNREAD, "a source that is empty: partial, unless the job allows it")
def empty_source(scenes: Scenes) -> str:
    top = str(scenes.stand.source("trouble"))
    outcomes = (
        _verdict(scenes, "trouble", scenes.trouble.empty),
        _verdict(scenes, "trouble", scenes.trouble.empty, allow_empty=(top,)),
    )
    return yes(outcomes == ("partial", "complete"), outcomes)


@behaviour(
    MOVING, "a file that is gone when it is its turn: vanished",
    Differs(NEW_RESTIC, "silence: it is not there any more"),
)  # fmt: skip
def vanished(scenes: Scenes) -> str:
    cause = scenes.moving.made.unread.get("z vanishes", "silence: it is not there any more")
    return yes(cause == "vanished", cause)


@behaviour(
    MOVING, "a directory that is gone: vanished",
    Differs((*NEW_RESTIC, *RDIFF), "silence: it is not there any more"),
)  # fmt: skip
def vanished_directory(scenes: Scenes) -> str:
    cause = scenes.moving.made.unread.get("z vanishes too", "silence: it is not there any more")
    return yes(cause == "vanished", cause)


@behaviour(
    MOVING, "a file that grows while it is read: changed",
    Differs(RESTIC, "silence: what was read is kept"),
    Differs(RDIFF, "a warning: what was listed is kept"),
)  # fmt: skip
def grows(scenes: Scenes) -> str:
    made = scenes.moving.made
    if any("a grows" in str(m["text"]) for m in made.all("warning")):
        return "a warning: what was listed is kept"
    cause = made.unread.get("a grows", "silence: what was read is kept")
    return yes(cause == "changed", cause)


@behaviour(
    MOVING, "a file that shrinks while it is read: changed",
    Differs(RESTIC, "silence: what was read is kept"),
)  # fmt: skip
def shrinks(scenes: Scenes) -> str:
    cause = scenes.moving.made.unread.get("m shrinks", "silence: what was read is kept")
    return yes(cause == "changed", cause)


@behaviour(
    MOVING, "of the one that shrank there is what was read",
    Differs(RDIFF, "what the session before had"),
)  # fmt: skip
def shrunk(scenes: Scenes) -> str:
    size = scenes.moving.shrunk
    return "what the session before had" if size < 0 else yes(1000 <= size < 12 * MIB, size)


@behaviour(
    MOVING, "a directory that has become a file: kept as what it is by then",
    Differs(RDIFF, "changed: it had been listed"),
)  # fmt: skip
def turns(scenes: Scenes) -> str:
    unread = scenes.moving.made.unread
    told = {name for name in unread if name in ("in", "z turns")}
    return "changed: it had been listed" if told else "yes"


@behaviour(MOVING, "none of it makes a backup incomplete: there is nothing truer to be had")
def forgiven(scenes: Scenes) -> str:
    outcome = _verdict(scenes, "moving", scenes.moving.made)
    return yes(outcome == "complete", outcome)


@behaviour(MOVING, "what was kept is sound: it is restored, and as the snapshot says")
def sound(scenes: Scenes) -> str:
    return yes(scenes.moving.restored.ok, scenes.moving.restored)
