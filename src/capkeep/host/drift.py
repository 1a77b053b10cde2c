"""What is not on this host as the plan that was applied says: users, files, directories."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator

from capkeep.host import answerer, apply, launchers, polkit, systemd, users
from capkeep.host.changes import Change
from capkeep.host.finding import APPLY, Finding, Kind
from capkeep.plan.model import Mode, Plan, Starter, room_users


def differences(plan: Plan) -> Iterator[Finding]:
    """A finding for each. Raises CapkeepError where systemd is too old for the plan."""
    if plan.mode is Mode.SYSTEM:
        yield from _users(plan)
    for change in apply.changes(plan):
        # The plan itself is compared with the configuration, which is said in one sentence.
        if change.path != plan.places.plan or not change.difference():
            yield from _look(change)
    yield from launchers.findings(plan)
    for change in polkit.changes(plan):
        yield from _look(change)
    if plan.starter is Starter.SYSTEMD:
        homes = answerer.logins(plan)
        names = (*room_users(plan.name), *homes)
        for change in systemd.files(plan, users.declared(names, _group(plan), homes)):
            yield from _look(change)
    if not os.path.isfile(plan.places.canary):
        yield Finding(Kind.DRIFT, plan.places.canary, "the canary is missing", APPLY)


def _users(plan: Plan) -> Iterator[Finding]:
    """Users that are gone, or that are others by now."""
    known = [(room.grant.user, room.grant.uid) for room in plan.rooms]
    known += [(answer.user, answer.uid) for answer in plan.answers]
    for name, uid in dict.fromkeys(known):
        try:
            found = pwd.getpwnam(name).pw_uid
        except KeyError:
            yield Finding(Kind.DRIFT, f"user {name}", f"is gone; it had uid {uid}", APPLY)
            continue
        if found != uid:
            text = f"has uid {found}; rooms and files have {uid}"
            yield Finding(Kind.DRIFT, f"user {name}", text, APPLY)

    if not _group(plan):
        text = "is gone; its members could ask for runs"
        yield Finding(Kind.DRIFT, f"group {plan.group}", text, APPLY)


def _group(plan: Plan) -> str:
    try:
        return grp.getgrgid(plan.group).gr_name
    except KeyError:
        return ""


def _look(change: Change) -> Iterator[Finding]:
    if change.needed():
        there = os.path.lexists(change.path)
        difference = change.difference() if there else ""
        text = _state(change.path, differs=bool(difference) or not change.path)
        yield Finding(Kind.DRIFT, change.path or change.what, text, APPLY, difference)


def _state(path: str, *, differs: bool) -> str:
    """What is wrong with it."""
    if differs:
        return "is not as `capkeep apply` makes it"
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    owner = f"{found.st_uid}:{found.st_gid}"
    return f"has a wrong owner or mode (owner {owner}, mode {found.st_mode & 0o7777:04o})"
