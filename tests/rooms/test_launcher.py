"""A launcher run for real: where its capability may come from, and what its caller can change of it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from capkeep.host.files import Owner, write_atomic
from capkeep.kernel import libc
from capkeep.kernel.facts import CAPABILITIES, read_facts
from capkeep.kernel.launcher import ATTRIBUTE, Mark, attribute, program

UID, GROUP, OTHER = 71_234, 71_300, 71_301
SHOW = (
    "import os, sys; print(sys.argv[1:], sorted(os.environ), [l.split()[1] for l in"
    " open('/proc/self/status') if l.startswith(('CapPrm', 'CapEff', 'CapAmb', 'NoNewPrivs'))]);"
    " print(open(sys.argv[1]).read(), end='')"
)
GIVEN = "['0000000000000004', '0000000000000004', '0000000000000004', '1']"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in which programs get what their files say."""
    base = Path(tempfile.mkdtemp(prefix="ck-", dir="/srv"))
    try:
        base.chmod(0o755)
        secret = base / "secret"
        secret.write_text("for root alone\n")
        secret.chmod(0o600)
        content = program(
            os.uname().machine,
            (os.path.realpath("/usr/bin/python3"), "-I", "-S", "-c", SHOW, str(secret)),
            {"PATH": "/usr/bin"},
        )
        write_atomic(
            str(base / "launcher"), content, owner=Owner(0, GROUP), mode=0o750,
            mark=attribute(Mark.PERMITTED),
        )  # fmt: skip
        yield base
    finally:
        shutil.rmtree(base)


def run(
    place: Path,
    *words: str,
    uid: int = UID,
    gid: int = GROUP,
    before: Callable[[], None] | None = None,
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [place / "launcher", *words], user=uid, group=gid, extra_groups=[], cwd="/",
        env={"PYTHONPATH": "/tmp", "PYTHONSTARTUP": "/tmp/x", "LD_PRELOAD": "/tmp/x.so", "FOO": "1"},
        capture_output=True, text=True, timeout=60, check=False, preexec_fn=before,
    )  # fmt: skip


def given(done: "subprocess.CompletedProcess[str]", place: Path) -> bool:
    words, variables = [str(place / "secret")], ["LC_CTYPE", "PATH"]
    return done.stdout == f"{words} {variables} {GIVEN}\nfor root alone\n"


def test_it_becomes_its_one_program_whatever_its_caller_says(place: Path) -> None:
    done = run(place, "-c", "print('mine')", "/etc/shadow")
    assert given(done, place), done


def test_nobody_but_its_group_can_run_it(place: Path) -> None:
    with pytest.raises(PermissionError):
        run(place, uid=OTHER, gid=OTHER)


def test_a_copy_has_nothing(place: Path) -> None:
    """As after a restore, an upgrade or a `cp`: it runs, and says what it lacks."""
    shutil.copy2(place / "launcher", place / "copy")
    os.chown(place / "copy", 0, GROUP)
    assert os.listxattr(place / "copy") == []
    os.replace(place / "copy", place / "launcher")
    done = run(place)
    assert "PermissionError" in done.stderr
    assert "0000000000000004" not in done.stdout


def test_a_mark_for_logins_gives_to_whom_the_login_has_given(place: Path) -> None:
    """`ei`, as pam_cap uses it: the capability is in nobody's inheritable set but that of a login's."""
    os.setxattr(place / "launcher", ATTRIBUTE, attribute(Mark.INHERITABLE))
    without = run(place)
    assert "PermissionError" in without.stderr
    # As pam_cap leaves a login: inheritable, and nothing else once the user is another.
    done = run(place, uid=0, gid=0, before=lambda: _as_pam_cap_does(inheritable=1 << 2))
    assert given(done, place), done


def test_without_a_mark_an_ambient_capability_is_enough(place: Path) -> None:
    os.removexattr(place / "launcher", ATTRIBUTE)
    done = run(place, uid=0, gid=0, before=_with_ambient)
    assert given(done, place), done


def _as_pam_cap_does(inheritable: int) -> None:
    mask = sum(1 << CAPABILITIES.index(name) for name in read_facts(None, ()).permitted)
    libc.capset(mask, mask, inheritable)
    os.setgroups([])
    os.setresgid(GROUP, GROUP, GROUP)
    os.setresuid(UID, UID, UID)


def _with_ambient() -> None:
    libc.prctl("PR_SET_KEEPCAPS", 8, 1)
    _as_pam_cap_does(inheritable=0)
    libc.capset(1 << 2, 1 << 2, 1 << 2)
    libc.raise_ambient(2)


def test_more_than_the_one_capability_is_given_up(place: Path) -> None:
    """Whoever has others does not pass them on."""

    def with_two() -> None:
        libc.prctl("PR_SET_KEEPCAPS", 8, 1)
        _as_pam_cap_does(inheritable=0)
        both = 1 << 2 | 1 << 1  # CAP_DAC_OVERRIDE
        libc.capset(both, both, both)
        libc.raise_ambient(1)
        libc.raise_ambient(2)

    os.removexattr(place / "launcher", ATTRIBUTE)
    done = run(place, uid=0, gid=0, before=with_two)
    assert given(done, place), done


TRUST: Final = """
import sys
from capkeep.errors import CapkeepError
from capkeep.plan.load import load_head
from capkeep.plan.model import Places
for in_room in (False, True):
    try:
        load_head(Places(*[sys.argv[1]] * 5), in_room=in_room)
        print("trusted")
    except CapkeepError as error:
        print(str(error).split()[-1])
"""


def test_a_strangers_plan_is_not_taken_for_root_s_in_a_namespace_without_root(place: Path) -> None:
    """There both look like nobody's; a room alone is shown the plan by whoever knows."""
    plan = place / "plan.json"
    plan.write_text("{}")
    os.chown(plan, OTHER, OTHER)
    package = str(Path(libc.__file__).parent.parent.parent)
    done = subprocess.run(
        ["/usr/bin/unshare", "--user", f"--map-user={UID}", "/usr/bin/python3", "-c", TRUST, place],
        env={"PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "root\ntrusted\n"


def test_the_numbers_are_nobody_s() -> None:
    """Or these tests would run as somebody who is there."""
    assert not {UID, OTHER} & {entry.pw_uid for entry in pwd.getpwall()}
