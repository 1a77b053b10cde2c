"""Programs and secrets: what others could change, what has privileges of its own, who could read.

Sources: capabilities(7), "File capabilities"; linux/capability.h, struct vfs_cap_data.
"""

import os
import stat
import struct
from collections.abc import Iterator
from typing import Final

from capkeep.config.sources import Owner
from capkeep.host import apply
from capkeep.host.finding import Finding, Kind
from capkeep.host.trust import distrusted
from capkeep.kernel.facts import capability_names
from capkeep.plan.model import Mode, Plan, Starter
from capkeep.values import PLAIN_STORES, SecretSource

# Where recipes set file capabilities, whether or not this plan uses the program.
USUAL: Final = ("/usr/bin/restic", "/usr/local/bin/restic", "/usr/bin/rclone")


def programs(plan: Plan) -> Iterator[Finding]:
    """What rooms execute, and whether that is root's alone and has no privilege of its own."""
    for found in distrusted(apply.trusted_paths(plan), apply.owners(plan.mode, os.geteuid())):
        yield Finding(Kind.PROGRAM, found.path, found.problem, found.mend)
    for uid, program in apply.lent_programs(plan):
        for found in distrusted([program], apply.owners(plan.mode, os.geteuid()) | {uid}):
            yield Finding(Kind.PROGRAM, found.path, found.problem, found.mend)
    paths = (*apply.engines(plan), "/usr/bin/python3", *USUAL)
    for path in sorted({os.path.realpath(p) for p in paths}):
        yield from _privileges(path)


def _privileges(path: str) -> Iterator[Finding]:
    if names := file_capabilities(path):
        text = f"gives whoever may run it {', '.join(names)}; no room needs that"
        yield Finding(Kind.PROGRAM, path, text, f"setcap -r {path}")
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # what is missing and needed has been told
    if mode & (stat.S_ISUID | stat.S_ISGID):
        text = f"runs as its owner, whoever runs it (mode {mode & 0o7777:04o})"
        yield Finding(Kind.PROGRAM, path, text, f"chmod u-s,g-s {path}")


def file_capabilities(path: str) -> tuple[str, ...]:
    """The capabilities that running a file gives; none where its filesystem knows none."""
    try:
        return parse_capabilities(os.getxattr(path, "security.capability"))
    except OSError:
        return ()


def parse_capabilities(raw: bytes) -> tuple[str, ...]:
    """The permitted and inheritable ones of the attribute; "" words of a later kernel are bits too."""
    words = struct.unpack(f"<{len(raw) // 4}I", raw[: len(raw) // 4 * 4])[1:5]
    mask = 0
    for index, word in enumerate(words):  # permitted, inheritable: low half, then high half
        mask |= int(word) << (32 if index >= 2 else 0)
    return capability_names(mask) or ("privileges that this program does not know",)


def secrets(plan: Plan) -> Iterator[Finding]:
    """Secrets that are not where they were, and those that others could read or exchange."""
    owner = Owner(user_mode=plan.mode is Mode.USER)
    if plan.starter is Starter.LAUNCHER:
        owner.reader = plan.runner.grant.uid
    for source in dict.fromkeys(s.source for r in plan.rooms for s in r.secrets):
        for path in _plain_files(source):
            yield from _secret(path, owner, plan)


def _plain_files(source: SecretSource) -> tuple[str, ...]:
    if source.file:
        return (source.file,)
    paths = (f"{store}/{source.credential}" for store in PLAIN_STORES if source.credential)
    return tuple(p for p in paths if os.path.lexists(p))


def _secret(path: str, owner: Owner, plan: Plan) -> Iterator[Finding]:
    try:
        unsafe = owner.unsafe_secret(os.stat(path))
    except OSError as error:
        text = f"cannot be looked at: {error.strerror}"
        make = f"install -m 600 /dev/null {path}, then write the secret into it"
        yield Finding(Kind.SECRET, path, text, make)
        return
    if unsafe:
        yield Finding(Kind.SECRET, path, unsafe, f"{owner.chown} {path}; chmod 600 {path}")
    folder = os.path.dirname(path)
    for found in distrusted([folder], apply.owners(plan.mode, os.geteuid())):
        text = f"{found.problem}, and so exchange {path}"
        yield Finding(Kind.SECRET, found.path, text, found.mend)
