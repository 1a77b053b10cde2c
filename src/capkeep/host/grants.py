"""Look at and try what decides how this host can give a program one capability; nothing is changed.

What is tried is tried in a child that ends at once; the one file that is needed for it is made in a
directory of root's own, and gone again before it is run.

Sources: unshare(2), capabilities(7), proc(5), journalctl(1).
"""

import errno
import os
import select
import shutil
import signal
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from capkeep.errors import CapkeepError
from capkeep.host import bubblewrap, pam_seen, programs, systemd
from capkeep.host.commands import ENVIRONMENT, run_command
from capkeep.host.pam_seen import read_text
from capkeep.host.ways_seen import KILLED, NUMBER, READ, SETTINGS, Files, Held, Seen, Systemd
from capkeep.kernel import libc, mounts
from capkeep.kernel.facts import OVERFLOW_ID, Facts, capability_names, read_facts
from capkeep.kernel.process import become_user, branch, spawn
from capkeep.plan.model import Grant, Mode, Plan, Starter

SECONDS: Final = 20
TRIALS: Final = ("/root", "/var/tmp", "/var/lib", "/tmp")  # where a program may be made
UNFIT: Final = frozenset(("nosuid", "noexec", "ro"))
KINDS: Final = {  # of namespaces, those that rooms have
    "mnt": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip
NEEDED: Final = (bubblewrap.BWRAP, bubblewrap.SETPRIV, bubblewrap.PRLIMIT)
_REC, _SLAVE = 0x4000, 1 << 19  # linux/mount.h
_NOSUID, _NODEV = 2, 4
_FD: Final = 10  # by which the program is run that has no name any more
_GREP: Final = "/usr/bin/grep"  # shows what the kernel says of it
_SHOW: Final = ("^CapEff:", "/proc/self/status")
_WHOLE: Final = "4294967295"
HOOKS: Final = ("/etc/apt/apt.conf.d", "/etc/dpkg/dpkg.cfg.d")
OVERRIDES: Final = "/var/lib/dpkg/statoverride"
DPKG: Final = "/usr/bin/dpkg-query"
JOURNALCTL: Final = "/usr/bin/journalctl"
LET_IN: Final = ("sshd", "login", "cron", "crond")
LEAVES_OUT: Final = "is configured, but"
STARTS: Final = "^Starting .*runner"
TOLD_MOST: Final = 5  # lines of the journal


def look(plan: Plan | None, mode: Mode, prefix: str) -> Seen:
    """Everything; `prefix` is that of the users where there is no plan. Raises OSError for /proc."""
    own = read_facts(None, ())
    root = os.geteuid() == 0
    missing = tuple(p for p in NEEDED if not os.access(p, os.X_OK))
    one = os.path.exists(_GREP)
    room = _room(Mode.SYSTEM) if root and one and not missing else None
    return Seen(
        root=root,
        bounding=own.bounding,
        no_new_privs=own.no_new_privs,
        filters=_filters(),
        landlock=own.landlock,
        own_ids=_has_own_ids(),
        missing=missing,
        namespaces={n: tried(partial(libc.unshare, f)) for n, f in KINDS.items()} if root else None,
        mounts=tried(_mount) if root else None,
        room=room,
        own_room=_room(Mode.USER) if one and not missing else None,
        settings=dict(_settings()),
        systemd=_systemd(plan, mode),
        files=_files(plan, own),
        pam=pam_seen.look(plan, prefix),
    )


def tried(work: Callable[[], None]) -> int:
    """The number of the error that `work` ends with in a child; 0 for none, KILLED for no answer."""
    receiving, sending = os.pipe()

    def inside() -> None:
        number = 0
        try:
            work()
        except OSError as error:
            number = error.errno or errno.EIO
        os.write(sending, b"%d" % number)

    pid = branch(inside)
    os.close(sending)
    with open(receiving, "rb", buffering=0) as pipe:
        said = pipe.read(8) if select.select([pipe], [], [], SECONDS)[0] else b""
    if not said:
        os.kill(pid, signal.SIGKILL)  # ours until it is waited for, dead or not
    os.waitpid(pid, 0)
    return int(said) if said else KILLED


def _mount() -> None:
    """In a child: an empty filesystem, which goes with the child."""
    libc.unshare(KINDS["mnt"])
    libc.mount(None, b"/", None, _REC | _SLAVE)
    libc.mount(b"tmpfs", b"/tmp", b"tmpfs", _NOSUID | _NODEV)


def _room(mode: Mode) -> str:
    """Make a room that shows what it has, in user mode as an ordinary user; what went wrong."""
    ids = (OVERFLOW_ID, OVERFLOW_ID) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    own = mode is Mode.USER
    grant = Grant("nobody", *ids, capabilities=() if own else (READ,))
    argv = bubblewrap.trial(grant, mode, (_GREP, *_SHOW))
    try:
        code, said = _run(argv, partial(_become, *ids) if own else None)
    except OSError as error:
        return _words(error)
    if code != 0:
        return " ".join(said.split()) or f"it ended with {code}"
    wanted = 0 if own else 1 << NUMBER
    return "" if own or _effective(said) == wanted else f"it has {said.strip()}"


def _become(uid: int, gid: int) -> None:
    """In a child: an ordinary user, without any group."""
    if os.geteuid() == 0:
        become_user(uid, gid)


def _run(
    argv: Iterable[str], prepare: Callable[[], None] | None = None, program: int = -1
) -> tuple[int, str]:
    """Exit code, and what was said. Raises OSError, TimeoutError."""
    receiving, sending = os.pipe()
    keep = {_FD: program} if program >= 0 else None
    try:
        child = spawn(
            tuple(argv), env=ENVIRONMENT, stdout=sending, stderr=sending, prepare=prepare, keep=keep
        )
    except BaseException:
        os.close(receiving)
        raise
    finally:
        os.close(sending)
    with open(receiving, "rb", buffering=0) as pipe:
        try:
            code = child.wait(SECONDS)
            said = pipe.read(4096) if select.select([pipe], [], [], 0)[0] else b""
        finally:
            child.kill()
    return code, said.decode(errors="replace")


def _words(error: OSError) -> str:
    """Without the path by which a program is run that has no name."""
    return os.strerror(error.errno) if error.errno else str(error)


def _effective(said: str) -> int:
    """The mask in a line of /proc/PID/status."""
    words = said.split()
    return int(words[1], 16) if len(words) == 2 and words[0] == "CapEff:" else -1


def _filters() -> int:
    with suppress(OSError):
        return read_facts(1, ()).seccomp_filters
    return 0


def _has_own_ids() -> bool:
    with suppress(OSError), open("/proc/self/uid_map") as file:
        return file.readline().split()[2:] == [_WHOLE]
    return True


def _settings() -> Iterator[tuple[str, str]]:
    for name in SETTINGS:
        with suppress(OSError), open(f"/proc/sys/{name.replace('.', '/')}") as file:
            yield name, file.read().strip()


def _systemd(plan: Plan | None, mode: Mode) -> Systemd:
    if not systemd.is_here():
        return Systemd()
    version = 0
    left_out: tuple[str, ...] = ()
    with suppress(CapkeepError, OSError):
        version = systemd.version()
        if plan and plan.starter is Starter.SYSTEMD and os.geteuid() == 0:
            left_out = systemd.left_out(plan)
    accepted = plan.accepted if plan and mode is Mode.SYSTEM else ()
    return Systemd(True, version, _bounding_of(1), accepted, left_out, _proceeding(plan))


def _bounding_of(pid: int) -> tuple[str, ...] | None:
    said = _status(pid).get("CapBnd")
    return capability_names(int(said, 16)) if said else None


def _status(pid: int) -> dict[str, str]:
    """What /proc says of a process, as far as it is told."""
    with suppress(OSError), open(f"/proc/{pid}/status", errors="replace") as file:
        pairs = (line.partition(":") for line in file)
        return {key: value.strip() for key, _, value in pairs}
    return {}


def _proceeding(plan: Plan | None) -> tuple[str, ...]:
    """What systemd said of protections that it left out of our units when rooms last started."""
    if plan is None or plan.starter is not Starter.SYSTEMD or os.geteuid() != 0:
        return ()
    argv = (JOURNALCTL, "--boot", "--quiet", "--no-pager", "--output=cat", "--lines=200", "--reverse",
            f"--grep={LEAVES_OUT}|{STARTS}", f"--unit={plan.name}-*")  # fmt: skip
    try:
        code, said = run_command(argv, timeout=SECONDS)
    except OSError:
        return ()
    return last_said(said.splitlines()[::-1])[:TOLD_MOST] if code == 0 else ()


def last_said(lines: Sequence[str]) -> tuple[str, ...]:
    """What is left out, by the lines that came after the last start of a runner; each once.

    A line is "NAME.service: PrivateNetwork=yes is configured, but … proceeding without", or
    "… ignoring"; the unit's name is left out.
    """
    begun = max((n for n, line in enumerate(lines) if line.startswith("Starting ")), default=0)
    told = (line.partition(": ")[2] for line in lines[begun:] if LEAVES_OUT in line)
    return tuple(dict.fromkeys(told))


def _engines(plan: Plan | None) -> tuple[str, ...]:
    """Programs that the way would be for: the plan's, or the usual ones that are there."""
    if plan is None:
        return tuple(p for p in programs.USUAL if os.path.exists(p))
    return tuple(sorted({r.program for r in plan.all_repositories if os.path.exists(r.program)}))


def _files(plan: Plan | None, own: Facts) -> Files:
    table = mounts.visible(mounts.read_mounts())
    nosuid, without = [], []
    engines = tuple(dict.fromkeys(map(os.path.realpath, _engines(plan))))
    for path in engines:
        point = mounts.mount_of(path, table)
        assert point is not None, "a host has a root"
        if "nosuid" in point.options:
            nosuid.append((path, point.point))
        if not _keeps_attributes(path):
            without.append((path, point.point))
    paths = dict.fromkeys((*engines, *map(os.path.realpath, programs.USUAL)))
    capable = ((path, programs.file_capabilities(path)) for path in paths)
    held = tuple(_held(path, names) for path, names in capable if names)
    trial = _file_trial(table) if os.geteuid() == 0 and not own.no_new_privs else None
    return Files(trial, tuple(nosuid), tuple(without), held, tuple(_closed_logins()))


def _keeps_attributes(path: str) -> bool:
    try:
        os.getxattr(path, "security.capability")
    except OSError as error:
        return error.errno != errno.ENOTSUP
    return True


def _held(path: str, names: tuple[str, ...]) -> Held:
    package = ""
    with suppress(OSError):
        code, said = run_command((DPKG, "--search", path), timeout=SECONDS)
        package = said.partition(":")[0] if code == 0 else ""
    overridden = any(line.split()[-1:] == [path] for line in read_text(OVERRIDES).splitlines())
    return Held(path, names, package, _hook(path), overridden)


def _hook(path: str) -> str:
    """A file that lets apt or dpkg set the capability again."""
    for folder in HOOKS:
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            for line in read_text(f"{folder}/{name}").splitlines():
                if "setcap" in line and path in line and not line.lstrip().startswith(("#", "//")):
                    return f"{folder}/{name}"
    return ""


def _closed_logins() -> Iterator[str]:
    """Programs of root's that let people in, and run with no_new_privs."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        said = _status(int(pid))
        own = said.get("Name") in LET_IN and said.get("Uid", "").split()[:1] == ["0"]
        if own and said.get("NoNewPrivs") == "1":
            found.add(said["Name"])
    yield from sorted(found)


def _file_trial(table: Iterable[mounts.Mount]) -> str | None:
    """Give a program the capability by its file and run it as nobody; what went wrong."""
    found = map(os.path.realpath, filter(os.path.isdir, TRIALS))
    points = ((folder, mounts.mount_of(folder, table)) for folder in found)
    fit = [folder for folder, point in points if point and not UNFIT.intersection(point.options)]
    if not fit or not os.path.exists(_GREP):
        return None
    try:
        program = _marked(fit[0])
    except OSError as error:
        return f"its file cannot be marked: {error.strerror}"
    try:
        nobody = partial(_become, OVERFLOW_ID, OVERFLOW_ID)
        code, said = _run((f"/proc/self/fd/{_FD}", *_SHOW), nobody, program)
    except OSError as error:
        return _words(error)
    finally:
        os.close(program)
    if code != 0:
        return " ".join(said.split()) or f"it ended with {code}"
    return "" if _effective(said) == 1 << NUMBER else f"it has {said.strip()}"


def _marked(folder: str) -> int:
    """A copy of a tiny program that gives the capability, open, and without a name. Raises OSError."""
    # struct vfs_cap_data, linux/capability.h: revision 2 and "effective", permitted, inheritable.
    mark = struct.pack("<5I", 0x02000001, 1 << NUMBER, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="capkeep-doctor-", dir=folder) as own:
        path = f"{own}/program"
        shutil.copyfile(_GREP, path)
        os.chmod(path, 0o755)  # noqa: S103 - in a directory of root's own
        os.setxattr(path, "security.capability", mark)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
