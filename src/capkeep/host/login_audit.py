"""What an audit says of the login that servers come in by; files and users are looked at, not changed."""

import grp
import os
import shlex
import stat
from collections.abc import Iterator
from typing import Final

from capkeep.errors import CapkeepError
from capkeep.host import answerer, sshd, users
from capkeep.host.finding import Finding, Kind
from capkeep.host.ssh_keys import parse
from capkeep.host.trust import distrusted
from capkeep.plan.model import Plan

EXPECTED: Final = {"": (".ssh",), ".ssh": ("authorized_keys",)}  # all that a home has, by directory


def findings(plan: Plan, config: str = sshd.CONFIG) -> Iterator[Finding]:
    """A finding for each trouble, by sshd's configuration. Raises CapkeepError if it cannot be asked."""
    for name in answerer.logins(plan):
        login = _login(plan, name)
        yield from _program(plan, login)
        yield from _files(login)
        yield from _groups(login)
        settings = sshd.effective(name, config)
        yield from _other_keys(settings, login)
        for text, mend in sshd.judge(settings, login):
            yield Finding(Kind.LOGIN, sshd.CONFIG, text, mend)


def troubles(plan: Plan) -> tuple[Finding, ...]:
    """The findings, or the one that they cannot be had."""
    try:
        return tuple(findings(plan))
    except (CapkeepError, OSError) as error:
        hint = error.hint if isinstance(error, CapkeepError) else ""
        return (Finding(Kind.LOGIN, sshd.CONFIG, str(error), hint or f"{sshd.SSHD} -t"),)


def exceptions(plan: Plan) -> Iterator[str]:
    """Who is let in on purpose."""
    for answer in plan.answers:
        key = parse(answer.key)
        who = " ".join(filter(None, (key.fingerprint, key.comment)))
        yield (
            f"{answer.user} lets in who has the key {who}: it may ask {answer.reader}, which gives it"
            " the files of its job"
        )


def _login(plan: Plan, name: str) -> sshd.Login:
    answers = [answer for answer in plan.answers if answer.user == name]
    kinds = tuple(parse(answer.key).kind for answer in answers)
    home, keys = answerer.home(plan.places), answerer.keys_path(plan.places)
    return sshd.Login(name, (_group(answers[0].gid),), home, keys, kinds)


def _program(plan: Plan, login: sshd.Login) -> Iterator[Finding]:
    """What others may not read, rooms see all the same; a login does not."""
    for path in (plan.interpreter, f"{plan.package}/capkeep/rooms/answerer.py"):
        parts = path.split("/")
        for end in range(2, len(parts) + 1):
            part = "/".join(parts[:end])
            needed, letter = (stat.S_IXOTH, "x") if end < len(parts) else (stat.S_IROTH, "r")
            if os.path.exists(part) and not os.stat(part).st_mode & needed:
                text = f"{login.name} may not read it, and cannot start capkeep"
                yield Finding(Kind.LOGIN, part, text, f"chmod o+{letter} {shlex.quote(part)}")
                break


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _files(login: sshd.Login) -> Iterator[Finding]:
    """What sshd would not believe, because others could write it, and what it reads beside the keys."""
    for found in distrusted([login.keys]) if os.path.lexists(login.keys) else ():
        yield Finding(Kind.LOGIN, found.path, found.problem, found.mend)
    for folder, names in EXPECTED.items():
        place = os.path.join(login.home, folder).rstrip("/")
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
            if name not in names:
                text = (
                    f"is none of capkeep's: sshd and shells read files at the home of {login.name}"
                )
                path = f"{place}/{name}"
                yield Finding(Kind.LOGIN, path, text, f"rm -r {shlex.quote(path)}")


def _groups(login: sshd.Login) -> Iterator[Finding]:
    for gid in users.groups((login.name,)).get(login.name, ()):
        group = _group(gid)
        if group not in login.groups:
            text = f"is in group {group}, and has more rights than to knock at a reader's door"
            mend = f"gpasswd -d {login.name} {group}"
            yield Finding(Kind.LOGIN, f"user {login.name}", text, mend)


def _other_keys(settings: sshd.Settings, login: sshd.Login) -> Iterator[Finding]:
    for path in sshd.key_files(settings, login):
        inside = path.startswith(f"{login.home}/")
        if path != login.keys and not inside and os.path.lexists(path):
            text = (
                f"sshd reads keys from it that let in {login.name}, and capkeep has not written it"
            )
            yield Finding(Kind.LOGIN, path, text, f"rm {shlex.quote(path)}")
