"""The attack table: every attempt, without a sandbox, as people run engines today, in each room.

`python -m tests.attack.table` prints it as Markdown; docs/reference/attacks.md is what it printed.
"""

import sys

from tests.attack.attempts import ATTEMPTS
from tests.attack.runs import ROOMS, Results, Stage, all_names, stage
from tests.engines import restic_programs

# What a room may do because its purpose is just that, and why it is no way out.
GRANTED: dict[tuple[str, str], str] = {
    ("keeper", "delete-from-vault"): "removing old snapshots is the keeper's purpose; its wire alone may",
    ("restorer", "leave-setuid-program"): "restored files have the modes of the snapshot",
    ("prover", "leave-setuid-program"): "restored files have the modes of the snapshot, and owners that are nobody",
    ("restorer", "make-device-node"): "restored files include devices",
    ("vault", "tcp-to-loopback"): "reaching the repository needs the network",
    ("vault", "tcp-to-address"): "reaching the repository needs the network",
    ("vault", "tcp-over-ipv6"): "reaching the repository needs the network",
    ("vault", "udp"): "finding the repository's address needs the network",
    ("vault", "listen-for-others"): "what has the network may also listen on it",
    ("vault", "open-a-door-in-cache"): "rclone serves its own vault so; nobody else may pass the directory",
    ("vault", "signal-process"): "of its own room alone: rclone can end the vault that started it",
    ("vault", "signal-by-thread-and-queue"): "of its own room alone: rclone can end the vault that started it",
    ("vault", "fill-disk"): "the vault writes on the repository's disk; it stops itself, rclone could not be stopped",
    ("notifier", "tcp-to-loopback"): "telling somebody outside needs the network",
    ("notifier", "tcp-to-address"): "telling somebody outside needs the network",
    ("notifier", "tcp-over-ipv6"): "telling somebody outside needs the network",
    ("notifier", "udp"): "finding somebody's address needs the network",
    ("notifier", "listen-for-others"): "what has the network may also listen on it",
    ("notifier", "open-a-door-in-cache"): "it has no cache; here it was given one to report in",
    ("notifier", "fill-disk"): "it may write nowhere; here it was given a place to report in",
    ("notifier", "signal-process"): "of its own room alone",
    ("notifier", "signal-by-thread-and-queue"): "of its own room alone",
    ("puller", "tcp-to-loopback"): "reaching its target needs the network",
    ("puller", "tcp-to-address"): "reaching its target needs the network",
    ("puller", "tcp-over-ipv6"): "reaching its target needs the network",
    ("puller", "udp"): "finding its target's address needs the network",
    ("puller", "listen-for-others"): "what has the network may also listen on it",
    ("puller", "open-a-door-in-cache"): "ssh's agent has one there; nobody else may pass the directory",
    ("puller", "signal-process"): "of its own room alone",
    ("puller", "signal-by-thread-and-queue"): "of its own room alone",
    ("puller", "fill-disk"): "it has a place for ssh's notes; it stops itself, ssh could not be stopped",
    ("link", "tcp-to-loopback"): "reaching its target needs the network",
    ("link", "tcp-to-address"): "reaching its target needs the network",
    ("link", "tcp-over-ipv6"): "reaching its target needs the network",
    ("link", "udp"): "finding its target's address needs the network",
    ("link", "listen-for-others"): "what has the network may also listen on it",
    ("link", "open-a-door-in-cache"): "ssh's agent has one there; nobody else may pass the directory",
    ("link", "signal-process"): "of its own room alone",
    ("link", "signal-by-thread-and-queue"): "of its own room alone",
    ("link", "fill-disk"): "it has a place for ssh's notes; it stops itself, ssh could not be stopped",
    ("dumper", "open-a-door-in-cache"): "it asks its server over a unix socket; nobody else may pass the directory",
    ("dumper", "fill-processes"): "its limit is that of all its user's processes on this host, a busy server included",
    ("dumper", "fill-threads"): "its limit is that of all its user's processes on this host, a busy server included",
    ("hook", "open-a-door-in-cache"): "in a directory that its table grants",
    ("hook", "fill-disk"): "it may write where its table says; nobody stops it",
    ("hook", "fill-processes"): "its limit is that of all its user's processes on this host",
    ("hook", "fill-threads"): "its limit is that of all its user's processes on this host",
    ("runner", "open-a-door-in-cache"): "in the records' directory, which is the runner's own",
    ("runner", "other-rooms-door"): "asking rooms is the runner's purpose",
    ("runner", "fill-disk"): "the runner writes records; nobody stops it",
}  # fmt: skip
GROUPS = {
    "write": "Writing", "secrets": "Secrets and other processes", "signals": "Signals",
    "sockets": "Sockets", "privileges": "Privileges and the kernel", "repository": "The repository",
    "limits": "Limits",
}  # fmt: skip
NO = "\N{EN DASH}"
TITLES = {"user": "reader in user mode"}
HEAD = ("attempt", "no sandbox", "setcap today", *(TITLES.get(r, r) for r in ROOMS))
INTRODUCTION = """\
# What a hostile engine gets

`make attack-table` puts a hostile program in the engine's place of every room (in place of rclone in
the vault, of ssh in the puller and the link, of its own program in the runner and the notifier, of the command in the rooms of a dump and of
a hook, which have one directory to write in and nothing else) and lets it try everything below. What it
says it got is checked from outside; **yes** is when either of the two says so.

- *no sandbox*: the same program with the same user and capability and nothing around it; "root" where
  only root succeeds. An attempt that never succeeds proves nothing, so each must succeed here.
- *setcap today*: the program with `setcap cap_dac_read_search=+ep`, run by a normal user, the way
  engines are often run without root.
- a number: it got this, and the room is meant to; see the notes.

Without a sandbox the rows about the repository are against a copy of it behind a server that checks
nothing, which is what an engine has that can write to its repository itself.
"""


def run_controls(stage: Stage) -> tuple[Results, Results, Results]:
    """Without a room as the same user; as root where that did not do; and as people do today."""
    without = stage.run("without", all_names())
    failed = tuple(n for n, o in without.items() if not o.got)
    return without, stage.run("root", failed), stage.run("today", all_names())


def render(controls: tuple[Results, Results, Results], rooms: dict[str, Results]) -> str:
    """The table as Markdown."""
    without, root, today = controls
    notes: list[str] = []
    lines = [INTRODUCTION]
    for group, title in GROUPS.items():
        lines += [f"\n## {title}\n", row(HEAD), row(["---", *[":-:"] * (len(HEAD) - 1)])]
        for attempt in (a for a in ATTEMPTS if a.group == group):
            name = attempt.name
            alone = "yes" if without[name].got else "root" if root[name].got else "not here"
            cells = [attempt.title, alone, "yes" if today[name].got else NO]
            for room, results in rooms.items():
                cells.append(cell(room, name, results, notes))
            lines.append(row(cells))
    lines += ["\n## Notes\n", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]
    total = sum(o.got for o in today.values())
    lines.append(
        f"\n{len(ATTEMPTS)} attempts; an engine run with setcap today succeeds in {total} of them."
    )
    return "\n".join(lines) + "\n"


def cell(room: str, name: str, results: Results, notes: list[str]) -> str:
    if not results[name].got:
        return NO
    note = GRANTED.get((room, name))
    if note is None:
        return "**YES**"
    text = f"{room}: {note}."
    if text not in notes:
        notes.append(text)
    return str(notes.index(text) + 1)


def row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    from tests.attack import layers
    from tests.lab import attacked, host

    with stage(str(list(restic_programs().values())[-1])) as ready:
        controls = run_controls(ready)
        rooms = {room: ready.run(room, all_names()) for room in ROOMS}
        print(render(controls, rooms), end="", flush=True)
        print(layers.render(ready), end="", flush=True)
    bad = [f"{r}: {n}" for r, rs in rooms.items() for n, o in rs.items()
           if o.got and (r, n) not in GRANTED]  # fmt: skip
    print("\n".join(bad), file=sys.stderr)
    if why := host.obstacle():
        print(f"nothing of booted machines, which cannot be had here: {why}", file=sys.stderr)
        return bool(bad)
    return attacked.main() or bool(bad)


if __name__ == "__main__":
    sys.exit(main())
