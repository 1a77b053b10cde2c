"""What comes back, and what listings say of it. Each name, mode and attribute is in `tree.py`."""

import os
import stat
from collections.abc import Callable

from capkeep.rooms.restorer import nanoseconds
from tests.contract.declared import BORG, OLD_RESTIC, RDIFF, RESTIC, Differs, behaviour, yes
from tests.contract.scenes import Scenes, Tree
from tests.contract.tree import HUGE_MARKS, HUGE_SIZE, LABEL, SPARSE_SIZE, Content, Kept

BACK = "Everything comes back"
LISTED = "Listings"
SECOND = 10**9
LEFT_OUT = {
    b"a.left-out", b"sub/cache-a", b"sub/cache-a/in", b"sub/exactly", b"socket", b"st*r", b"st*r/in",
    b"b[1]",
}  # fmt: skip


def _compared(found: Tree, of: Callable[[Kept], object], *kinds: int) -> str:
    """Whether that is the same of everything of those kinds; the first that is not."""
    nothing = Kept(0, 0, 0, 0, 0, 0, 0, "", ())
    for name, before in found.before.items():
        if name in LEFT_OUT or (kinds and stat.S_IFMT(before.mode) not in kinds):
            continue
        after = found.after.get(name, nothing)
        if of(after) != of(before):
            return f"{os.fsdecode(name)}: {of(after)}, was {of(before)}"
    return yes(True)


def _times(found: Tree, *kinds: int) -> str:
    exact = _compared(found, lambda k: k.mtime_ns, *kinds)
    whole = _compared(found, lambda k: k.mtime_ns // SECOND * SECOND, *kinds)
    return "to the second" if exact != "yes" == whole else exact


def _attributes(prefix: str) -> Callable[[Kept], object]:
    return lambda kept: [x for x in kept.xattrs if x[0].startswith(prefix)]


@behaviour(BACK, "the content of every file, an empty one's too")
def contents(scenes: Scenes) -> str:
    return _compared(scenes.tree, lambda k: (k.content, k.size), stat.S_IFREG)


@behaviour(BACK, "owner and group, of ids above 65535 too")
def owners(scenes: Scenes) -> str:
    return _compared(scenes.tree, lambda k: (k.uid, k.gid))


@behaviour(BACK, "modes, with setuid, setgid and sticky")
def modes(scenes: Scenes) -> str:
    return _compared(scenes.tree, lambda k: k.mode)


@behaviour(BACK, "a file's time, to the nanosecond", Differs(RDIFF, "to the second"))
def file_times(scenes: Scenes) -> str:
    return _times(scenes.tree, stat.S_IFREG)


@behaviour(BACK, "a directory's time, to the nanosecond", Differs(RDIFF, "to the second"))
def directory_times(scenes: Scenes) -> str:
    return _times(scenes.tree, stat.S_IFDIR)


def _times_or_none(found: Tree, *kinds: int) -> str:
    told = _times(found, *kinds)
    return told if told in ("yes", "to the second") else "the restore's time"


@behaviour(BACK, "a symbolic link's time", Differs(RDIFF, "the restore's time"))
def link_times(scenes: Scenes) -> str:
    return _times_or_none(scenes.tree, stat.S_IFLNK)


@behaviour(BACK, "a device's time", Differs(RDIFF, "the restore's time"))
def device_times(scenes: Scenes) -> str:
    return _times_or_none(scenes.tree, stat.S_IFCHR, stat.S_IFBLK)


@behaviour(BACK, "a named pipe's time, to the nanosecond", Differs(RDIFF, "to the second"))
def pipe_times(scenes: Scenes) -> str:
    return _times(scenes.tree, stat.S_IFIFO)


@behaviour(BACK, "a symbolic link's target and owner")
def links(scenes: Scenes) -> str:
    return _compared(scenes.tree, lambda k: (k.content, k.uid, k.gid), stat.S_IFLNK)


@behaviour(BACK, "extended attributes, of any bytes and of none")
def attributes(scenes: Scenes) -> str:
    return _compared(scenes.tree, _attributes("user."))


@behaviour(BACK, "access lists (POSIX ACLs), a directory's default one too")
def access_lists(scenes: Scenes) -> str:
    return _compared(scenes.tree, _attributes("system.posix_acl"))


@behaviour(BACK, "file capabilities")
def capabilities(scenes: Scenes) -> str:
    return _compared(scenes.tree, _attributes("security.capability"))


@behaviour(
    BACK, "each other `security.` attribute (SELinux's, IMA's) that the restorer may not set is named",
    Differs(RESTIC, "left out, and the restore says so"),
)  # fmt: skip
def security_attributes(scenes: Scenes) -> str:
    restored = scenes.labels.restored
    if restored.ok and not restored.all("difference"):
        told = isinstance(said := restored.result["summary"], dict) and said["left_out"]
        return "left out, and the restore says so" if told else "silence"
    named = {
        os.path.basename(str(m["path"])) for m in restored.all("difference")
        if f"attribute {LABEL} could not be set" in str(m["detail"])
    }  # fmt: skip
    counted = f"{LABEL} of 2 files" in str(restored.result["text"])
    return yes(named == {"labelled", "labelled too"} and counted, restored)


@behaviour(
    BACK, "and all else of such a file", Differs(OLD_RESTIC, "without its other attributes"),
)  # fmt: skip
def beside_security_attributes(scenes: Scenes) -> str:
    before, after = (
        {
            name: kept._replace(
                xattrs=tuple(x for x in kept.xattrs if x[0] != LABEL),
                mtime_ns=kept.mtime_ns // SECOND,
            )
            for name, kept in found.items()
        }
        for found in (scenes.labels.before, scenes.labels.after)
    )
    bare = {name: kept._replace(xattrs=()) for name, kept in before.items()}
    return "without its other attributes" if after == bare else yes(after == before, after)


@behaviour(BACK, "`trusted.` attributes do not: only root sees them")
def trusted_attributes(scenes: Scenes) -> str:
    return yes(not scenes.tree.after[b"privileged"].xattrs, "they do")


@behaviour(BACK, "hard links as one file")
def hard_links(scenes: Scenes) -> str:
    back = scenes.tree.back
    inodes = {(back / name).lstat().st_ino for name in ("first", "second", "sub/third")}
    return yes(len(inodes) == 1, "as files of their own")


@behaviour(BACK, "holes as holes", Differs(OLD_RESTIC, "filled with zeros"))
def holes(scenes: Scenes) -> str:
    blocks = (scenes.tree.back / "sparse").lstat().st_blocks
    return yes(blocks * 512 < SPARSE_SIZE * 3 // 4, "filled with zeros")


@behaviour(BACK, "a file of 5 GiB, byte for byte")
def five_gib(scenes: Scenes) -> str:
    huge = scenes.huge
    right = Content(HUGE_SIZE, tuple(b"at %d" % place for place in HUGE_MARKS), 0)
    whole = huge.came_back == right and huge.listed == HUGE_SIZE
    return yes(huge.made.ok and huge.restored.ok and whole, huge)


@behaviour(BACK, "named pipes")
def pipes(scenes: Scenes) -> str:
    return _compared(scenes.tree, lambda k: k.mode, stat.S_IFIFO)


@behaviour(BACK, "devices with their numbers")
def devices(scenes: Scenes) -> str:
    return _compared(scenes.tree, lambda k: (k.mode, k.rdev), stat.S_IFCHR, stat.S_IFBLK)


@behaviour(BACK, "sockets do not: whoever listens makes them")
def sockets(scenes: Scenes) -> str:
    return yes(b"socket" not in scenes.tree.after, "they do")


def _named(found: Tree, *names: bytes) -> str:
    missing = [os.fsdecode(name) for name in names if name not in found.after]
    return yes(not missing, f"without {missing}")


@behaviour(BACK, "names of 255 bytes")
def long_names(scenes: Scenes) -> str:
    return _named(scenes.tree, b"n" * 255)


@behaviour(BACK, "names that are not UTF-8")
def odd_names(scenes: Scenes) -> str:
    return _named(scenes.tree, b"not utf-8 \xff\xfe")


@behaviour(BACK, "names with newlines and other control characters")
def control_names(scenes: Scenes) -> str:
    return _named(scenes.tree, b"new\nline", b"tab\tbell\a", "\u2028".encode())


@behaviour(BACK, "names that look like options, quotes or patterns")
def misleading_names(scenes: Scenes) -> str:
    return _named(scenes.tree, b"-r", b"--", b"'quoted'", b'"double"', b"back\\slash", b"*", b"[a]")


@behaviour(BACK, "sixty directories inside each other")
def deep_trees(scenes: Scenes) -> str:
    return _named(
        scenes.tree, b"deep/" + b"/".join(b"level-%d" % n for n in range(60)) + b"/bottom"
    )


@behaviour(BACK, "and nothing else does")
def nothing_else(scenes: Scenes) -> str:
    return yes(scenes.tree.after.keys() <= scenes.tree.before.keys())


@behaviour(BACK, "chosen paths alone, whatever characters they have")
def chosen_paths(scenes: Scenes) -> str:
    return yes(scenes.full.chosen.keys() == {"[a]"}, scenes.full.chosen)


@behaviour(
    BACK, "and the restorer, which compares all of it with the snapshot, finds no difference"
)
def restorer(scenes: Scenes) -> str:
    return yes(scenes.tree.restored.ok, scenes.tree.restored)


@behaviour(
    BACK, "what is excluded is not: by name, by pattern, and by path, whatever characters it has"
)
def excludes(scenes: Scenes) -> str:
    top = scenes.tree.top
    left_out = {f"{top}/{os.fsdecode(name)}" for name in LEFT_OUT - {b"socket"}}
    kept = all(
        f"{top}/{name}" in scenes.tree.entries for name in ("sub/exactly not", "star/in", "b1")
    )
    found = sorted(path.removeprefix(f"{top}/") for path in left_out & scenes.tree.entries.keys())
    return yes(kept and not found, found)


@behaviour(LISTED, "a snapshot has the host and the labels that it was made with")
def labels(scenes: Scenes) -> str:
    told = {(str(s["host"]), str(s["tags"])) for s in scenes.history.listed}
    return yes(told == {("house", "['capkeep:history']")}, told)


@behaviour(LISTED, "and the sources", Differs(RDIFF, "not told: a repository is of one job"))
def listed_sources(scenes: Scenes) -> str:
    paths = scenes.history.listed[0]["paths"]
    assert isinstance(paths, list)
    top = str(scenes.stand.source("history"))
    return yes(top in paths, paths or "not told: a repository is of one job")


@behaviour(LISTED, "a backup names the snapshot that it made")
def identity(scenes: Scenes) -> str:
    made, listed = str(scenes.history.first.result["snapshot"]), str(scenes.history.listed[0]["id"])
    return yes(made and listed.startswith(made), made)


@behaviour(LISTED, "entries have their kind, size, mode and owner")
def entries(scenes: Scenes) -> str:
    top, found = scenes.tree.top, scenes.tree.entries
    kinds = {
        "mode-4755": "file", "dir-1777": "dir", "fifo": "fifo", "null": "chardev",
        "loop": "dev", "new\nline": "file",
    }  # fmt: skip
    wanted, told = {}, {}
    for name, kind in kinds.items():
        real = scenes.tree.before[name.encode()]
        wanted[name] = (kind, real.size, stat.S_IMODE(real.mode), real.uid, real.gid)
        entry = found.get(f"{top}/{name}", {})
        told[name] = tuple(entry.get(key) for key in ("kind", "size", "mode", "uid", "gid"))
    return yes(told == wanted, told)


@behaviour(
    LISTED, "and their time, to the nanosecond",
    Differs(BORG, "to the microsecond"), Differs(RDIFF, "to the second"),
)  # fmt: skip
def listed_times(scenes: Scenes) -> str:
    told = nanoseconds(str(scenes.tree.entries[f"{scenes.tree.top}/mode-0644"]["mtime"])) or 0
    away = abs(told - scenes.tree.before[b"mode-0644"].mtime_ns)
    exact = {0: "yes", 3: "to the microsecond", 9: "to the second"}
    return next((text for digits, text in exact.items() if away < 10**digits), f"{away} ns away")


@behaviour(
    LISTED,
    "and their name, though it is not UTF-8",
    Differs((*RESTIC, *BORG), "with a sign in place of each byte"),
)
def listed_names(scenes: Scenes) -> str:
    top, found = scenes.tree.top, scenes.tree.entries
    if f"{top}/{os.fsdecode(b'not utf-8 ' + bytes([0xFF, 0xFE]))}" in found:
        return "yes"
    return yes(
        False,
        "with a sign in place of each byte" if f"{top}/not utf-8 \ufffd\ufffd" in found else "no",
    )


@behaviour(LISTED, "a name is found in every snapshot that has it, and in no other")
def finding(scenes: Scenes) -> str:
    where = {"goes": {0}, "comes": {1, 2}}
    return yes(scenes.history.found == where, scenes.history.found)


@behaviour(LISTED, "two snapshots are compared: what came, what went, what has other content")
def comparing(scenes: Scenes) -> str:
    changes = scenes.history.changes
    told = (changes.get("comes"), changes.get("goes"), "M" in changes.get("changes", ""))
    return yes(told == ("+", "-", True), changes)


@behaviour(LISTED, "what has another mode alone is not told of as changed content")
def comparing_modes(scenes: Scenes) -> str:
    return yes(
        "M" not in scenes.history.changes.get("mode", ""), scenes.history.changes.get("mode")
    )
