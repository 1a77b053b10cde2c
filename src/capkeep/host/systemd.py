"""What systemd is told: which units there are, that they have changed, which of them run.

Sources: sd_booted(3), systemctl(1), systemd-analyze(1), sysusers.d(5), tmpfiles.d(5).
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, partial
from typing import Final

from capkeep.errors import CapkeepError, RefusedError
from capkeep.host import hardening, unit_text, units
from capkeep.host.changes import (
    Change,
    Removal,
    Undo,
    directory_change,
    empty_directory,
    file_change,
    indented,
    link_change,
)
from capkeep.host.commands import run_command
from capkeep.host.files import Owner
from capkeep.kernel import mounts
from capkeep.kernel.facts import OVERFLOW_ID
from capkeep.plan import codec
from capkeep.plan.model import WIRED, Access, Brief, Plan, Room, Starter, View, outline

UNIT_DIRECTORY: Final = "/etc/systemd/system"
TMPFILES: Final = "/etc/tmpfiles.d"
SYSUSERS: Final = "/etc/sysusers.d"
SYSTEMCTL: Final = "/usr/bin/systemctl"
ANALYZE: Final = "/usr/bin/systemd-analyze"
OLDEST: Final = 252
IDENTITY_IDS: Final = 1 << 16  # what `PrivateUsers=identity` maps (systemd.exec(5), 257)
SECONDS: Final = 90
ROOT: Final = Owner(0, 0)


class SystemdError(CapkeepError):
    """systemd does not take what it is told."""


def is_here() -> bool:
    """Whether systemd runs this host (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def version() -> int:
    """systemd's. Raises SystemdError."""
    code, output = run_command([SYSTEMCTL, "--version"], timeout=SECONDS)
    found = re.match(r"systemd (\d+)", output)
    if code != 0 or not found:
        raise SystemdError(f"{SYSTEMCTL} --version does not tell: {output.strip()}")
    return int(found[1])


@cache
def look(plan: Plan) -> hardening.Host:
    """What of this host decides about its units. Raises RefusedError for an old systemd.

    A command looks once, however often it asks: there may be millions of files to be looked at.
    """
    number = version()
    if number < OLDEST:
        raise RefusedError(
            f"systemd {number} is older than {OLDEST}, and lacks directives that rooms rely on",
            hint='write start = "doors" in [host] and let `capkeep doors` start the rooms',
        )
    table = mounts.read_mounts()
    shown = {r.name: _shown(plan, r, table)[0] for r in _readers(plan)}
    sources = {path for r in _readers(plan) for path in r.grant.sources}
    large = number == 257 and _has_large_ids(sources)
    return hardening.Host(number, shown, large, pulls=bool(plan.targets))


def changes(plan: Plan, users: Iterable[str]) -> Iterator[Change]:
    """What the plan's units need, the units themselves, and that they run.

    `users` are lines of sysusers.d(5).
    """
    host = look(plan)
    rendered = units.render(plan, host)
    verify(rendered)
    yield from _files(plan, users, host)
    changed: set[str] = set()
    for unit in rendered:
        change = _unit_file(unit)
        yield change._replace(make=partial(_make_noted, change.make, unit.name, changed))
    names = tuple(u.name for u in rendered)
    yield Change("systemd reads its units again", partial(_needs_reload, names), _reload)
    begun: set[str] = set()
    for name in units.enabled(plan):
        needed = partial(_is_to_start, name, changed)
        make = partial(_make_noted, partial(_start, name, changed), name, begun)
        yield Change(f"unit {name} is enabled and runs", needed, make)
    # Once for all: reading them takes as long as all else that is done here for one of them.
    yield Change("systemd knows what it starts by itself", lambda: bool(begun), _reload)


def files(plan: Plan, users: Iterable[str]) -> Iterator[Change]:
    """The files and directories alone, units among them, to be compared. Raises as `look` does."""
    host = look(plan)
    yield from _files(plan, users, host)
    yield from map(_unit_file, units.render(plan, host))


def _files(plan: Plan, users: Iterable[str], host: hardening.Host) -> Iterator[Change]:
    """What units need beside themselves."""
    runner = plan.runner.grant
    yield directory_change(units.root_directory(plan), owner=ROOT, mode=0o755)
    for path, target in units.links():
        yield link_change(f"{units.root_directory(plan)}{path}", target)
    yield directory_change(f"{plan.places.state}/rooms", owner=ROOT, mode=0o700)
    own = Owner(runner.uid, runner.gid)
    yield directory_change(os.path.dirname(units.host_facts(plan)), owner=own, mode=0o755)
    for room in plan.rooms:
        for name in units.sockets_of(plan, room):
            path = units.brief_path(plan, name)
            content = codec.dumps(_brief(plan, room, name, host)).encode() + b"\n"
            yield file_change(
                f"brief {path}", path, content, owner=ROOT, mode=0o600, readable=indented
            )
    for folder in (SYSUSERS, TMPFILES):
        if not os.path.isdir(folder):
            yield directory_change(folder, owner=ROOT, mode=0o755)
    yield _file(f"{SYSUSERS}/{plan.name}.conf", "\n".join((unit_text.MADE_BY, *users, "")))
    yield _file(f"{TMPFILES}/{plan.name}.conf", _tmpfiles(plan))


def _unit_file(unit: unit_text.Unit) -> Change:
    return _file(f"{UNIT_DIRECTORY}/{unit.name}", unit.text)


def left_out(plan: Plan) -> tuple[str, ...]:
    """Protections that rooms would have under a newer systemd."""
    return hardening.left_out(plan, look(plan))


def forget() -> None:
    """Let systemd see that unit files are gone."""
    tell("daemon-reload")


def way_back(name: str) -> Undo:
    """To be made last, when all files are as before: what runs now runs again."""
    running = tuple(n for n in installed(name) if "@." not in n and _is("is-active", n))
    return partial(_run_again, running)


def _run_again(names: tuple[str, ...]) -> None:
    tell("daemon-reload")
    if names:
        tell("enable", "--now", *(n for n in names if not n.endswith(".service")))


def _make_noted(make: Callable[[], Undo], name: str, changed: set[str]) -> Undo:
    changed.add(name)
    return make()


def obsolete(plan: Plan) -> Iterator[Removal]:
    """Units of this installation, and briefs for them, that the plan does not have (any more)."""
    wanted: set[str] = set()
    briefs: set[str] = set()
    if plan.starter is Starter.SYSTEMD:
        wanted = {u.name for u in units.render(plan, look(plan))}
        names = (name for room in plan.rooms for name in units.sockets_of(plan, room))
        briefs = {units.brief_path(plan, name) for name in names}
    left = [name for name in installed(plan.name) if name not in wanted]
    for name in left:
        yield Removal(f"unit {name}", lambda: True, partial(_take_away, name))
    for path in _briefs(plan):
        if path not in briefs:
            yield Removal(f"brief {path}", lambda: True, partial(os.unlink, path))
    if left:
        yield Removal("systemd's memory of the units", lambda: True, forget)


def remove(plan: Plan) -> Iterator[Removal]:
    """Stop and take away every unit of this installation, and what was made for them."""
    names = installed(plan.name)
    for name in names:
        yield Removal(f"unit {name}", lambda: True, partial(_take_away, name))
    for conf in (f"{SYSUSERS}/{plan.name}.conf", f"{TMPFILES}/{plan.name}.conf"):
        yield Removal(f"file {conf}", partial(os.path.lexists, conf), partial(os.unlink, conf))
    yield empty_directory(SYSUSERS)  # Debian has none until somebody declares users there
    if names:
        yield Removal("systemd's memory of the units", lambda: True, forget)


def _briefs(plan: Plan) -> list[str]:
    folder = os.path.dirname(units.brief_path(plan, ""))
    return [f"{folder}/{n}" for n in sorted(os.listdir(folder))] if os.path.isdir(folder) else []


def installed(name: str) -> tuple[str, ...]:
    """Unit files of an installation, sockets and timers first, by what `apply` wrote in them."""
    found: list[str] = []
    with suppress(FileNotFoundError):
        pattern = re.compile(rf"{re.escape(name)}-.*\.(socket|timer|service)")
        names = filter(pattern.fullmatch, sorted(os.listdir(UNIT_DIRECTORY)))
        found = [n for n in names if _is_ours(n)]
    return tuple(sorted(found, key=lambda n: n.endswith(".service")))


def verify(rendered: Iterable[unit_text.Unit]) -> None:
    """Let systemd read the units before they are anybody's. Raises SystemdError with its words."""
    with tempfile.TemporaryDirectory(prefix="capkeep-units-") as directory:
        paths = []
        for unit in rendered:
            paths.append(f"{directory}/{unit.name}")
            with open(paths[-1], "w", encoding="utf-8") as file:
                file.write(unit.text)
        argv = [ANALYZE, "verify", "--man=no", "--recursive-errors=no", *paths]
        code, output = run_command(argv, timeout=SECONDS)
    complaints = [line for line in output.splitlines() if directory in line or "nknown" in line]
    if code != 0 or complaints:
        said = dict.fromkeys(line.replace(f"{directory}/", "") for line in output.splitlines())
        raise SystemdError(
            "systemd does not take the units:\n  " + "\n  ".join(said),
            hint="nothing was changed; this systemd may be newer than this capkeep knows",
        )


def _is_ours(name: str) -> bool:
    with open(f"{UNIT_DIRECTORY}/{name}", encoding="utf-8", errors="replace") as file:
        return file.readline() == unit_text.MADE_BY + "\n"


def _file(path: str, text: str) -> Change:
    return file_change(f"file {path}", path, text.encode(), owner=ROOT, mode=0o644)


def _readers(plan: Plan) -> list[Room]:
    return [r for r in plan.rooms if r.grant.view is View.HOST]


def _shown(
    plan: Plan, room: Room, table: tuple[mounts.Mount, ...]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    one = plan.job(room.job).one_file_system
    return mounts.source_mounts(table, room.grant.sources, one_file_system=one)


def _brief(plan: Plan, room: Room, unit: str, host: hardening.Host) -> Brief:
    """What a room can be told beforehand; the rest it finds out (rooms/brief.py)."""
    is_reader = room.grant.view is View.HOST
    shown, left_out = _shown(plan, room, mounts.read_mounts()) if is_reader else ((), ())
    vault = room.kind in WIRED
    return outline(plan, room, hardening.walls(plan, room.grant, host))._replace(
        access=Access(unit.rpartition("-")[2]) if vault else None,
        left_out=left_out,
        source_root=units.SOURCE_ROOT if is_reader else "",
        shown=shown,
        wire_path=units.WIRE if room.wire else "",
        origin_path=units.ORIGIN if room.origin else "",
    )


def _has_large_ids(sources: Iterable[str]) -> bool:
    """Whether a file belongs to an id that `identity` does not map, or to what these look like."""
    waiting = list(sources)
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    state = entry.stat(follow_symlinks=False)
                    ids = (state.st_uid, state.st_gid)
                    if max(ids) >= IDENTITY_IDS or OVERFLOW_ID in ids:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue  # not a directory, or gone, or a FUSE mount that root may not enter
    return False


def _tmpfiles(plan: Plan) -> str:
    """What must be there again after a restart of the machine."""
    runner = plan.runner.grant
    host = os.path.dirname(units.host_facts(plan))
    return "\n".join((
        unit_text.MADE_BY,
        f'd "{plan.places.run}" 0755 root root -',
        f'd "{plan.places.stage}" 0700 root root -',
        f'd "{host}" 0755 {runner.uid} {runner.gid} -',
        "",
    ))  # fmt: skip


def tell(*words: str) -> str:
    """What systemctl answers to a command. Raises SystemdError where it refuses."""
    code, output = run_command([SYSTEMCTL, *words], timeout=SECONDS)
    if code != 0:
        raise SystemdError(f"systemctl {' '.join(words)} failed: {output.strip()}")
    return output


def _needs_reload(names: tuple[str, ...]) -> bool:
    """Whether systemd has read other files than these (systemctl(1), NeedDaemonReload)."""
    whole = [n for n in names if "@." not in n]
    said = tell("show", "--property=NeedDaemonReload,LoadState", *whole)
    return "NeedDaemonReload=yes" in said or "LoadState=not-found" in said


def _reload() -> Undo:
    forget()
    return forget


def _is_to_start(name: str, changed: set[str]) -> bool:
    return name in changed or not (_is("is-enabled", name) and _is("is-active", name))


def _is(question: str, name: str) -> bool:
    code, _ = run_command([SYSTEMCTL, question, "--quiet", name], timeout=SECONDS)
    return code == 0


def _start(name: str, changed: set[str]) -> Undo:
    tell("enable", "--no-reload", name)
    try:
        # One that runs must be started anew to be as its file says (systemd.socket(5)).
        tell("restart" if name in changed else "start", name)
    except BaseException:
        _end(name)
        raise
    return partial(_end, name)


def _end(name: str) -> None:
    tell("disable", "--now", name)
    _forget_failure(name)


def _forget_failure(name: str) -> None:
    """One that is gone from disk would still be listed as failed."""
    with suppress(SystemdError):  # it has not failed
        tell("reset-failed", name)


def _take_away(name: str) -> None:
    if "@." not in name:
        with suppress(SystemdError):  # broken by hand, it goes all the same
            tell("disable", "--now", "--no-reload", name)
            if name.endswith(".timer"):
                tell("clean", "--what=state", name)  # when it last fired (Persistent=)
    else:
        with suppress(SystemdError):
            tell("stop", name.replace("@.", "@*."))
    _forget_failure(name.replace("@.", "@*."))
    os.unlink(f"{UNIT_DIRECTORY}/{name}")
