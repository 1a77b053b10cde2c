"""What a script tells of a host that has no capkeep, where each way is broken once."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from capkeep.errors import StepError
from capkeep.host import far_script, far_seen
from capkeep.host.enroll_script import Ground
from capkeep.host.ways_seen import Judged, State, Way
from tests.system.test_doctor import APART, READ

LOGIN = "capkeep-answerer"
NOTHING = Ground(home="/nonexistent", booted="/nonexistent")


def ways(*before: str) -> dict[Way, Judged]:
    """What is said of each way; `before` starts the script in another manner."""
    done = subprocess.run(
        [*before, "/bin/sh", "-s"], input=far_script.script(LOGIN, NOTHING), cwd="/",
        capture_output=True, text=True, timeout=120, check=True, env={"PATH": "/usr/sbin:/usr/bin"},
    )  # fmt: skip
    assert done.stderr == ""
    return {way.way: way for way in far_seen.read(done.stdout, LOGIN).ways}


def said(judged: Judged) -> str:
    return " ".join(reason.text for reason in (*judged.reasons, *judged.remarks))


def test_a_capability_that_nobody_there_may_have() -> None:
    found = ways("setpriv", "--bounding-set=-dac_read_search", "--")
    for way in (Way.DOORS, Way.LAUNCHER, Way.FILE):
        assert f"may not have {READ} himself (bounding set)" in said(found[way])
    assert found[Way.USER].state is State.WORKS


def test_a_login_without_new_privileges() -> None:
    found = ways("setpriv", "--no-new-privs", "--")
    assert "no_new_privs" in said(found[Way.FILE])
    assert not found[Way.LAUNCHER].used


def test_a_limit_of_namespaces_is_told_from_a_refusal() -> None:
    limit = 'echo 0 >/proc/sys/user/max_net_namespaces; exec "$@"'
    found = ways("unshare", "--user", "--map-root-user", "sh", "-ec", limit, "sh")
    assert "net can be made: user.max_net_namespaces is used up" in said(found[Way.DOORS])
    assert "root here is not the machine's" in said(found[Way.DOORS])
    refused = ways("setpriv", "--bounding-set=-sys_admin", "--")
    assert "root has no CAP_SYS_ADMIN here" in said(refused[Way.DOORS])


def test_programs_get_nothing_where_launchers_would_be() -> None:
    script = 'mount -t tmpfs -o nosuid tmpfs /var/lib; exec "$@"'
    found = ways(*APART, script, "sh")
    text = "/var/lib lies on /var/lib, which is mounted nosuid"
    assert text in said(found[Way.FILE])
    assert text in said(found[Way.LAUNCHER])
    assert found[Way.DOORS].used


def test_a_program_that_is_not_there() -> None:
    script = 'mount --bind /dev/null /usr/bin/bwrap; exec "$@"'
    found = ways(*APART, script, "sh")
    assert "/usr/bin/bwrap is not there" in said(found[Way.DOORS])
    assert "/usr/bin/bwrap is not there" in said(found[Way.LAUNCHER])
    assert found[Way.FILE].state is State.WORKS


def test_a_line_of_pam_that_logins_never_get_to(tmp_path: Path) -> None:
    services = tmp_path / "pam.d"
    services.mkdir()
    (services / "sshd").write_text("auth sufficient pam_unix.so\nauth optional pam_cap.so")
    script = f'mount --bind {services} /etc/pam.d; exec "$@"'
    text = said(ways(*APART, script, "sh")[Way.PAM])
    assert "sshd never gets to pam_cap.so at /etc/pam.d/sshd:2" in text


def test_who_is_not_root_tells_what_he_can_see() -> None:
    found = ways("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    assert (found[Way.DOORS].state, found[Way.DOORS].not_seen) == (
        State.UNKNOWN,
        "only root can try it",
    )
    assert found[Way.USER].state is State.WORKS
    assert next(way for way in found.values() if way.used).state is not State.WORKS


def test_nothing_is_left_there() -> None:
    def state() -> tuple[list[str], str]:
        return sorted(os.listdir(far_script.PLACE)), Path("/proc/self/mounts").read_text()

    before = state()
    ways()
    assert state() == before


def test_its_own_capkeep_is_believed_where_it_says_what_a_doctor_says(tmp_path: Path) -> None:
    program = tmp_path / "bin/capkeep"
    program.parent.mkdir()
    way = {"way": "doors", "state": "works", "used": True, "reasons": [], "remarks": [],
           "not_seen": "\x1b[2J"}  # fmt: skip
    ground = Ground(home=str(tmp_path))
    for answer, code, own in ((json.dumps({"ways": [way]}), 1, True), ("", 2, False),
                              (json.dumps({"ways": [{"way": "new"}]}), 0, None)):  # fmt: skip
        program.write_text(f"#!/bin/sh\ncat <<'E'\n{answer}\nE\nexit {code}\n")
        program.chmod(0o755)
        told = subprocess.run(["/bin/sh", "-s"], input=far_script.script(LOGIN, ground), text=True,
                              capture_output=True, timeout=120, check=True).stdout  # fmt: skip
        if own is None:
            with pytest.raises(StepError, match="cannot be read"):
                far_seen.read(told, LOGIN)
        else:
            assert far_seen.read(told, LOGIN).has_capkeep is own
