"""Render a room's grant as a bubblewrap and setpriv command line; pure but for looking at paths.

Sources: bwrap(1), setpriv(1), capabilities(7). The order of bubblewrap's arguments is the order of
its mounts, so what is hidden comes before what is shown again inside it.
"""

import os
from typing import Final, NamedTuple

from capkeep.kernel.process import python
from capkeep.plan.model import Grant, Mode, Plan, Room, RoomKind, View, Walls

BWRAP: Final = "/usr/bin/bwrap"
SETPRIV: Final = "/usr/bin/setpriv"
PRLIMIT: Final = "/usr/bin/prlimit"
PROGRAM_PATH: Final = "/usr/bin:/bin"
# bubblewrap needs these to build the room; setpriv gives them up before the room's program starts.
BUILDERS: Final = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
DEVICES: Final = ("null", "zero", "full", "random", "urandom")
ETC: Final = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "localtime", "alternatives")
ETC_PYTHON: Final = ("ld.so.cache",)
ETC_RUNNER: Final = ("passwd", "nsswitch.conf", "ld.so.cache", "localtime")
ETC_NETWORK: Final = ("resolv.conf", "hosts", "ssl", "ca-certificates", "services", "gai.conf")
USR_MERGE: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

MODULES: Final = {
    RoomKind.RUNNER: "capkeep.run.runner",
    RoomKind.READER: "capkeep.rooms.reader",
    RoomKind.VAULT: "capkeep.rooms.vault",
    RoomKind.KEEPER: "capkeep.rooms.keeper",
    RoomKind.VIEWER: "capkeep.rooms.viewer",
    RoomKind.RESTORER: "capkeep.rooms.restorer",
    RoomKind.NOTIFIER: "capkeep.rooms.notifier",
    RoomKind.DUMPER: "capkeep.rooms.dumper",
    RoomKind.HOOK: "capkeep.rooms.hook",
    RoomKind.PROVER: "capkeep.rooms.prover",
    RoomKind.COPIER: "capkeep.rooms.copier",
    RoomKind.GIVER: "capkeep.rooms.giver",
    RoomKind.PULLER: "capkeep.rooms.puller",
    RoomKind.MOUNTER: "capkeep.rooms.mounter",
    RoomKind.LINK: "capkeep.rooms.vault",  # which serves an sftp-server in place of a repository
}


class Command(NamedTuple):
    """A program to execute and its whole environment."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]


def render(room: Room, plan: Plan, stage: str, target: str = "") -> Command:
    """The command that starts `room`; `stage` is where the source view has been put together.

    `target` is a writable path whose directory is shown at the plan's stage, and taken from there.
    """
    grant = room.grant
    args: list[str] = [BWRAP, "--die-with-parent", "--new-session"]
    mode = plan.mode_of(room)
    args += _namespaces(grant, mode)
    args += _host_view(grant, stage) if grant.view is View.HOST else _tools_view(room, plan)
    for path in grant.write:
        source = plan.places.stage if path == target else path
        # A directory for metrics may be gone; no backup fails for that.
        how = "--bind-try" if path == plan.metrics else "--bind"
        args += [*_parents(path), how, source, path]
    if grant.view is View.HOST:
        for path in _hidden_dirs(grant):
            args += ["--remount-ro", path]
    else:
        args += ["--remount-ro", "/"]
    args += ["--remount-ro", "/run"]
    # Who makes a namespace writes its maps there; nothing else in it is writable without root.
    args += [] if grant.subordinate[1] else ["--remount-ro", "/proc"]
    args += ["--chdir", "/", "--"]
    args += _become(grant, mode)
    args += [plan.interpreter, *python(plan.package, MODULES[room.kind])]
    return Command(tuple(args), (("PATH", PROGRAM_PATH), ("LANG", "C.UTF-8")))


def trial(grant: Grant, mode: Mode, argv: tuple[str, ...]) -> tuple[str, ...]:
    """The words that start a program in a room with the host's view and nothing of its own."""
    start = (BWRAP, "--die-with-parent", "--new-session", *_namespaces(grant, mode))
    view = (*_host_view(grant, ""), "--remount-ro", "/run", "--remount-ro", "/proc")
    return (*start, *view, "--chdir", "/", "--", *_become(grant, mode), *argv)


def walls(grant: Grant, mode: Mode) -> Walls:
    """What a room that is started like this has of its own."""
    own = ["mnt", "pid", "ipc", "uts"]
    own += [] if grant.network else ["net"]
    own += ["user"] if mode is Mode.USER or grant.subordinate[1] else []
    return Walls(tuple(own), ("/proc",) if grant.subordinate[1] else ())


def _namespaces(grant: Grant, mode: Mode) -> list[str]:
    args = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if not grant.network:
        args.append("--unshare-net")
    if mode is Mode.USER:
        return [*args, "--unshare-user", "--uid", str(grant.uid), "--gid", str(grant.gid)]
    args += ["--cap-drop", "ALL"]
    for capability in dict.fromkeys((*BUILDERS, *grant.held_first)):
        args += ["--cap-add", capability]
    return args


def _become(grant: Grant, mode: Mode) -> list[str]:
    """Give up root for the room's user; nothing to give up in user mode.

    There the number of processes is limited only here, in the room's own user namespace: outside
    it all of the user's processes count, and a desktop has more than a room may have.
    """
    if mode is Mode.USER:
        return [PRLIMIT, f"--nproc={grant.limits.processes}", "--"]
    names = [c.removeprefix("CAP_").lower() for c in grant.held_first]
    sets = ",".join(["-all", *(f"+{n}" for n in names)])
    return [
        SETPRIV, f"--reuid={grant.uid}", f"--regid={grant.gid}", "--clear-groups",
        f"--inh-caps={sets}", f"--ambient-caps={sets}", f"--bounding-set={sets}",
        "--no-new-privs", "--",
    ]  # fmt: skip


def _own_places(*, network_files: bool) -> list[str]:
    """The room's own /proc, /dev and /run; nothing in them is writable for its user."""
    args = ["--proc", "/proc", "--perms", "0755", "--tmpfs", "/dev"]
    for device in DEVICES:
        args += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    args += ["--symlink", "/proc/self/fd", "/dev/fd", "--remount-ro", "/dev"]
    args += ["--perms", "0755", "--tmpfs", "/run"]
    if network_files and os.path.realpath("/etc/resolv.conf").startswith("/run/"):
        real = os.path.realpath("/etc/resolv.conf")
        args += [*_parents(real), "--ro-bind-try", real, real]
    return args


def _parents(path: str) -> list[str]:
    """The directories above a mount point, passable for the room: bubblewrap's own would be 0700."""
    parts = path.split("/")[1:-1]
    above = ["/" + "/".join(parts[: n + 1]) for n in range(len(parts))]
    return [word for directory in above for word in ("--perms", "0755", "--dir", directory)]


def _hidden_dirs(grant: Grant) -> list[str]:
    return [p for p in grant.hide if os.path.isdir(p)]


def _host_view(grant: Grant, stage: str) -> list[str]:
    """The machine's own root, read-only, so that snapshots hold the real paths."""
    args = ["--ro-bind", stage or "/", "/", *_own_places(network_files=grant.network)]
    hidden_dirs = _hidden_dirs(grant)
    for path in grant.hide:
        if path in hidden_dirs:
            args += ["--perms", "0755", "--tmpfs", path]
        elif os.path.lexists(path):
            args += ["--ro-bind", "/dev/null", path]
    return args


def _tools_view(room: Room, plan: Plan) -> list[str]:
    """Programs and a few public files: nothing of what is backed up."""
    args = ["--ro-bind", "/usr", "/usr"]
    for path in USR_MERGE:
        if os.path.islink(path):
            args += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            args += ["--ro-bind", path, path]
    args += _parents("/etc/passwd")
    for name in ETC + (ETC_NETWORK if room.grant.network else ()):
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    args += _own_places(network_files=room.grant.network)
    programs = [plan.interpreter]
    if room.repository:
        repository = plan.repository(room.repository)
        programs += [
            repository.environment_folder or repository.program,
            *(v for k, v in repository.options if k == "rclone"),
        ]
    shown = [p for p in programs if not p.startswith(("/usr/", "/bin/"))]
    for path in (*shown, *room.grant.read):
        args += [*_parents(path), "--ro-bind", path, path]
    args += _lent(room.grant)
    if not plan.package.startswith("/usr/"):
        package = f"{plan.package}/capkeep"
        args += [*_parents(package), "--ro-bind", package, package]
    return args


def _lent(grant: Grant) -> list[str]:
    """What a room sees of a server: its sockets, and directories in which it may write."""
    args = []
    for how, paths in (("--ro-bind-try", grant.sockets), ("--bind-try", grant.shared)):
        for path in paths:
            args += [*_parents(path), how, path, path]
    return args
