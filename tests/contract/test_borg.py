"""What borg 1.2 and 1.4 do and say, through its real server in a real vault, without rooms."""

import os
import subprocess
from pathlib import Path

import pytest

from capkeep.engines.base import Cause, Event, Seen, Summary, Unreadable
from capkeep.engines.borg import ENGINE
from capkeep.errors import Failure
from tests.engines import borg_programs
from tests.rooms.borgkit import Borg

NOBODY = 65534


@pytest.fixture(params=["1.2", "1.4"])
def borg(request: pytest.FixtureRequest, tmp_path: Path) -> Borg:
    found = Borg(tmp_path, borg_programs()[request.param])
    found.init()
    return found


def heard(done: subprocess.CompletedProcess[bytes], watch: tuple[str, ...] = ()) -> list[Event]:
    reader = ENGINE.read_backup(watch)
    lines = [("stderr", line) for line in done.stderr.splitlines()]
    lines += [("stdout", line) for line in done.stdout.splitlines()]
    return [event for stream, line in lines for event in reader.feed(stream, line)]


def failure(done: subprocess.CompletedProcess[bytes]) -> Failure | None:
    said = (*done.stderr.decode().splitlines(), *done.stdout.decode().splitlines())
    found = ENGINE.diagnose(done.returncode, said)
    return found.failure if found else None


def test_whatever_is_not_read_is_named_with_its_cause(borg: Borg) -> None:
    """By a borg that runs as nobody, with one file after the other under its feet."""
    source = borg.source
    for name in ("a: [Errno 5] x: read", "denied", "fine"):
        (source / name).write_text(name)
    (source / "denied").chmod(0)
    (source / "closed").mkdir(mode=0o700)
    (source / "closed/inside").write_text("never seen")
    (source / "odd \udcff").write_text("odd")
    (source / "odd \udcff").chmod(0)
    (source / "a: [Errno 5] x: read").chmod(0)
    for folder in (borg.base, *borg.base.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    for name in ("cache", "tmp"):
        for path in (borg.base / name, *(borg.base / name).rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    command = ENGINE.backup(
        borg.call, borg.job(include=(str(source), "/no/such/place")),
        watch=(f"{source}/fine", f"{source}/denied"),
    )  # fmt: skip
    words = ("/usr/bin/setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    done = borg.run(command._replace(argv=(*words, *command.argv)))
    assert ENGINE.partial(done.returncode), done
    found = heard(done, (f"{source}/fine", f"{source}/denied"))
    causes = {u.path: u.cause for u in found if isinstance(u, Unreadable)}
    assert causes == {
        f"{source}/denied": Cause.DENIED,
        f"{source}/closed": Cause.DENIED,
        f"{source}/odd \ufffd": Cause.DENIED,
        f"{source}/a": Cause.IO,  # a name that speaks like borg spoils what is told of itself alone
        "/no/such/place": Cause.VANISHED,
    }, done.stderr.decode()
    assert [s.path for s in found if isinstance(s, Seen)] == [f"{source}/fine"]
    summary = next(s for s in found if isinstance(s, Summary))
    assert (summary.total_files, summary.files_new) == (1, 1)
    assert summary.snapshot == borg.snapshots()[0].id


def test_failures_have_names(borg: Borg, tmp_path: Path) -> None:
    elsewhere = borg.call._replace(repository="/etc")
    assert failure(borg.run(ENGINE.snapshots(elsewhere))) is Failure.DENIED
    empty = Borg(_made(tmp_path / "empty"), Path(borg.program))
    assert failure(empty.run(ENGINE.init(empty.call))) is Failure.DENIED  # the keeper's alone


def _made(path: Path) -> Path:
    path.mkdir()
    return path
