"""Look at this host: whether it is as planned, and whether rooms can do what they should, no more.

Nothing is changed by looking. Rooms are started to be looked at (host/probe.py); every other question
is answered from files and by systemd.
"""

from collections.abc import Callable, Iterable
from typing import Final

from capkeep.config.mistakes import MistakesError
from capkeep.errors import CapkeepError
from capkeep.host import drift, launchers, login_audit, polkit, programs, systemd, unit_state
from capkeep.host.changes import file_change, indented
from capkeep.host.compile import Compiler
from capkeep.host.files import Owner
from capkeep.host.finding import APPLY, Audit, Finding, Kind
from capkeep.host.probe import Probes, probe
from capkeep.plan import codec
from capkeep.plan.load import load_plan
from capkeep.plan.model import Mode, Places, Plan, Room, RoomKind, Starter

NOTHING: Final = Probes((), (), ())


def audit(places: Places, mode: Mode) -> Audit:
    """Everything that can be found out; what keeps a question from being answered is a finding."""
    try:
        plan = load_plan(places)
    except CapkeepError as error:
        found = Finding(Kind.PLAN, places.plan, str(error), APPLY)
        mistakes = _safely(Kind.CONFIGURATION, places.config, lambda: _config(places, mode, None))
        return Audit((found, *mistakes))
    findings = [
        *_safely(Kind.CONFIGURATION, places.config, lambda: _config(places, mode, plan)),
        *_safely(Kind.DRIFT, places.state, lambda: drift.differences(plan)),
        *login_audit.troubles(plan),
        *_safely(Kind.PROGRAM, plan.package, lambda: programs.programs(plan)),
        *_safely(Kind.SECRET, places.secrets, lambda: programs.secrets(plan)),
    ]
    exceptions = list(by_design(plan))
    if plan.starter is Starter.SYSTEMD:
        if not systemd.is_here():
            text = "does not run this host, and the plan has units for it"
            findings.append(Finding(Kind.UNIT, "systemd", text, APPLY))
            return Audit(_once(findings), (), tuple(exceptions))
        findings += _safely(Kind.UNIT, "systemd", lambda: _units(plan, exceptions))
    probes = NOTHING
    left_out: tuple[str, ...] = ()
    try:
        probes = probe(plan, _mends(findings))
        left_out = systemd.left_out(plan) if plan.starter is Starter.SYSTEMD else ()
    except (CapkeepError, OSError) as error:
        findings.append(_unanswered(Kind.PROBE, "rooms", error))
    findings += probes.findings
    exceptions += (f"{name} is in use, and was not looked at" for name in probes.busy)
    exceptions += dict.fromkeys(f"{p.room}: {text}" for p in probes.rooms for text in p.accepted)
    return Audit(_once(findings), probes.rooms, tuple(exceptions), left_out)


def _mends(findings: Iterable[Finding]) -> dict[str, str]:
    """By unit, what mends it where it has been changed: then that is why its room is weak."""
    units = f"{systemd.UNIT_DIRECTORY}/"
    changed = (f for f in findings if f.kind is Kind.DROP_IN or f.what.startswith(units))
    return {f.what.removeprefix(units): f.mend for f in changed}


def _safely(kind: Kind, what: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings, or the one that they cannot be had."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except (CapkeepError, OSError) as error:
        found.append(_unanswered(kind, what, error))
    return found


def _unanswered(kind: Kind, what: str, error: CapkeepError | OSError) -> Finding:
    hint = error.hint if isinstance(error, CapkeepError) else ""
    return Finding(kind, what, str(error), hint or APPLY)


def _once(findings: list[Finding]) -> tuple[Finding, ...]:
    """A secret's mode is a mistake in the configuration too: what has the same mending is said once."""
    secret = {f.mend for f in findings if f.kind is Kind.SECRET}
    kept = (f for f in findings if f.kind is not Kind.CONFIGURATION or f.mend not in secret)
    return tuple(dict.fromkeys(kept))


def _config(places: Places, mode: Mode, plan: Plan | None) -> Iterable[Finding]:
    """Mistakes in the configuration, and whether it says something else than the plan."""
    try:
        compiler = Compiler(places, mode)
    except MistakesError as error:
        for m in error.mistakes:
            where = f"{m.file}:{m.line}" if m.line else m.file
            text = f"{m.key}: {m.problem}" if m.key else m.problem
            yield Finding(Kind.CONFIGURATION, where, text, m.hint or "capkeep config check")
        return
    if plan is None or any(change.needed() for change in compiler.users()):
        return  # told already; without its users there are no numbers for a plan
    wanted = compiler.draft()
    if codec.dumps(wanted) == codec.dumps(plan):
        return
    text = "is not what the configuration, or this host, would have it be by now"
    change = file_change(
        "plan", places.plan, codec.dumps(wanted).encode(), owner=Owner(0, 0), mode=0o640,
        readable=indented,
    )  # fmt: skip
    yield Finding(Kind.PLAN, places.plan, text, APPLY, change.difference())
    if mode is not Mode.SYSTEM:
        return
    for removal in (*systemd.obsolete(wanted), *polkit.obsolete(wanted)):
        if removal.needed():
            yield Finding(Kind.PLAN, removal.what, "is not in the configuration any more", APPLY)


def _units(plan: Plan, exceptions: list[str]) -> Iterable[Finding]:
    state = unit_state.examine(plan)
    exceptions += state.harmless
    return state.findings


def _more_than_others(room: Room) -> Iterable[str]:
    """What one room has, or is started with, that others have not."""
    if room.kind is RoomKind.VAULT and room.grant.capabilities:
        names = " ".join(name.removeprefix("CAP_") for name in room.grant.capabilities)
        place = room.grant.write[0]
        yield f"{room.name} gives the files in {place}, and no others, to their owners with {names}"
    if room.grant.mounts:
        names = " ".join(name.removeprefix("CAP_") for name in room.grant.held_first)
        yield (
            f"{room.name} is started with {names}, makes one mount that nobody else sees, and gives"
            " that up before it meets the target"
        )


def _by_starter(plan: Plan) -> Iterable[str]:
    """What comes with whoever starts the rooms."""
    if plan.starter is Starter.DOORS:
        yield "`capkeep doors` runs as root: it starts rooms and reads nothing that callers send"
    elif plan.starter is Starter.LAUNCHER:
        yield from (f"without a root parent there are no {text}" for text in launchers.GIVEN_UP)


def who_has_keys(plan: Plan) -> Iterable[str]:
    """Whose password opens what is on another host, or of another host."""
    for repository in plan.repositories:
        if repository.target_keeps_password:
            yield f"the target alone has the password of {repository.name}: nobody here can open it"
    for room in plan.rooms:
        if room.repository and plan.repository(room.repository).pulled_by and room.secrets:
            yield (
                f"{room.name} seals what {room.repository} comes for with this host's own password:"
                " whoever loses it loses those backups"
            )


def by_design(plan: Plan) -> Iterable[str]:
    """What has more than a room's rights, and has it on purpose."""
    if plan.mode is Mode.SYSTEM:
        yield "`capkeep apply` and `capkeep remove` run as root, when root asks"
        yield from _by_starter(plan)
        held = {c for r in plan.rooms if r.kind is RoomKind.RESTORER for c in r.grant.capabilities}
        names = " ".join(sorted(name.removeprefix("CAP_") for name in held))
        yield f"`capkeep restore` is started by root, and its room gives files back with {names}"
    for room in plan.rooms:
        if room.hook and (right := plan.hook(room.hook).polkit):
            yield f"polkit lets {room.grant.user} do {right}, for {room.name}"
        yield from _more_than_others(room)
    if any(room.kind is RoomKind.GIVER for room in plan.rooms):
        yield "[host] members-restore gives members of the group what they could read themselves"
    yield from login_audit.exceptions(plan)
    for repository in plan.repositories:
        if repository.engine_network:
            yield f"the engine of {repository.name} has the network itself (engine-network)"
    yield from who_has_keys(plan)
    if plan.accepted and plan.starter is Starter.SYSTEMD:
        yield f"[host] accept-missing allows rooms without {', '.join(plan.accepted)}"
