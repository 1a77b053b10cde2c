"""rdiff-backup's half that has the repository, killed at moments spread over all that it does.

The moments are its changes of the file system, as Python itself reports them (sys.addaudithook): it is
killed right before one of them. Whatever it was, the next session takes it back, and every session
that was whole stays so.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

import capkeep
from capkeep.engines.base import Call, Command
from capkeep.engines.rdiff import ENGINE
from tests.attack.test_rdiff import PYTHON, Selected, contents, honest

MOMENTS = 6
STORE = """
import os, signal, sys
sys.path.append({package!r})
from capkeep.guest.rdiff import asked, backup, library, store
library.load()
CHANGES = {{"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod",
           "os.utime", "os.truncate"}}
top, left = os.fsencode(sys.argv[1]), {moment}
seen = 0
def look(event, args):
    global seen
    if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    if event != "open" and event not in CHANGES:
        return
    if not any(isinstance(a, (str, bytes)) and os.fsencode(a).startswith(top) for a in args):
        return
    seen += 1
    if seen == left:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
code = store.main()
print("changes", seen, file=sys.stderr)
sys.exit(code)
"""


def _store(moment: int, said: Path) -> tuple[str, ...]:
    """What is started in place of the usual half: the same, and it dies."""
    code = STORE.format(package=str(Path(capkeep.__file__).parent.parent), moment=moment)
    shell = 'exec "$@" 2>"$0"'
    return ("/bin/sh", "-c", shell, str(said), PYTHON, "-I", "-B", "-c", code)


@contextmanager
def _dying(moment: int, said: Path) -> Iterator[None]:
    usual = ENGINE.server

    def server(place: object) -> Command:
        command = usual(place)  # type: ignore[arg-type]
        assert command is not None
        return command._replace(argv=(*_store(moment, said), *command.argv[-4:]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ENGINE), "server", lambda _self, place: server(place))
        yield


@contextmanager
def _owned() -> Iterator[None]:
    """The mirror's files belong to their owners, which those of the template do not yet."""
    usual = ENGINE.server
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(ENGINE), "server", lambda _self, place: usual(place._replace(owners="numbers"))
        )
        yield


def _backup(source: Path) -> Callable[[Call], tuple[tuple[str, ...], object, str]]:
    return lambda call: ENGINE.backup(call, Selected(source))


def _moments(repository: Path, source: Path, said: Path) -> list[int]:
    """Numbers of changes that a session makes: the first ones, the last ones, and some between."""
    again = repository.with_name("counted")
    shutil.copytree(repository, again, symlinks=True)
    with _dying(0, said):
        honest(again, _backup(source))
    shutil.rmtree(again)
    number = int(said.read_text().split()[-1])
    step = max(1, number // MOMENTS)
    return [1, *range(step, number, step), number]


def _change(source: Path) -> None:
    (source / "changes").write_bytes(os.urandom(5000))
    (source / "goes").unlink()
    (source / "folder" / "new").write_text("new")
    (source / "becomes").unlink()
    (source / "becomes").mkdir()
    (source / "becomes" / "in").write_text("in")
    shutil.rmtree(source / "was-folder")
    (source / "was-folder").symlink_to("changes")


@pytest.mark.timeout(300)
def test_whenever_it_is_killed_the_next_session_puts_it_right(tmp_path: Path) -> None:
    template, source, said = tmp_path / "template", tmp_path / "source", tmp_path / "said"
    for name in ("folder", "was-folder"):
        (source / name).mkdir(parents=True)
        (source / name / "file").write_text(name)
    for name in ("changes", "goes", "becomes", "rdiff-backup.tmp.0", "rdiff-backup.tmp.1"):
        (source / name).write_text(name)
    os.link(source / "changes", source / "zlinked")
    honest(template, ENGINE.init)
    empty = tmp_path / "empty"
    shutil.copytree(template, empty)
    honest(template, _backup(source))
    (first,) = ENGINE.parse_snapshots(honest(template, ENGINE.snapshots))
    before = contents(template, first.id)
    assert {Path(p).name for p in before} >= {"rdiff-backup.tmp.0", "rdiff-backup.tmp.1"}
    _change(source)
    now = {f"{source}/{name}"[1:]: content for name, content in _plain(source).items()}
    tried = 0
    os.chown(source / "folder" / "file", 1234, 1234)
    for start, some, owned in ((template, 1, False), (empty, 3, False), (template, 3, True)):
        with _owned() if owned else nullcontext():
            for moment in _moments(start, source, said)[::some]:
                repository = tmp_path / "repository"
                shutil.copytree(start, repository, symlinks=True)
                with _dying(moment, said):
                    honest(repository, _backup(source), expected=1)
                honest(repository, _backup(source))
                tried += 1
                _is_whole(repository, first.id if start is template else "", before, now)
                kept = Path(f"{repository}{source}")
                assert (kept / "folder" / "file").stat().st_uid == (1234 if owned else 0)
                assert (kept / "changes").stat().st_uid == 0
                shutil.rmtree(repository)
    assert tried > MOMENTS


def _plain(top: Path) -> dict[str, bytes]:
    """What is in the files below, and where links lead; not what is rdiff-backup's own."""
    return {
        str(p.relative_to(top)): os.fsencode(os.readlink(p)) if p.is_symlink() else p.read_bytes()
        for p in top.rglob("*")
        if (p.is_symlink() or p.is_file()) and p.relative_to(top).parts[0] != "rdiff-backup-data"
    }


def _is_whole(
    repository: Path, first: str, before: dict[str, bytes], now: dict[str, bytes]
) -> None:
    """By our own check of all data, by a restore of what was whole before, and by the mirror itself."""
    checked = ENGINE.read_check()
    for line in honest(repository, lambda call: ENGINE.check(call, read_data="all")).splitlines():
        checked.feed("stdout", line)
    assert checked.result().errors == 0, checked.result()
    assert _plain(repository) == now
    if first:
        assert contents(repository, first) == before
    left = [p for p in repository.rglob("rdiff-backup.tmp.*") if len(p.name) > 20]
    assert not left


def test_an_init_that_was_killed_can_be_made_again(tmp_path: Path) -> None:
    repository, said = tmp_path / "repository", tmp_path / "said"
    with _dying(0, said):
        honest(repository, ENGINE.init)
    number = int(said.read_text().split()[-1])
    assert number >= 5
    for moment in (1, 3, number):
        shutil.rmtree(repository)
        with _dying(moment, said):
            honest(repository, ENGINE.init, expected=1)
        honest(repository, ENGINE.init)
    assert b"is a repository already" in honest(repository, ENGINE.init, expected=1)
    assert honest(repository, ENGINE.snapshots).count(b"session") == 0
