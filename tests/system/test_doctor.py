"""`capkeep doctor`: each way to the capability is broken once, and it says which sentence mends it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.host import pam_stack
from capkeep.kernel import landlock
from capkeep.kernel.facts import CAPABILITIES
from tests.system.test_apply import Host, applied_host

BLOCKED = "does not work"
READ = "CAP_DAC_READ_SEARCH"
# Files and mounts are changed in a mount namespace of one's own: this host keeps what it has.
APART = ("unshare", "--mount", "--propagation", "private", "sh", "-ec")
# Logs somebody in by each service that is named, and prints what he then may inherit.
LOG_IN = """
import ctypes, os, sys
pam = ctypes.CDLL("libpam.so.0")
for service in sys.argv[1:]:
    if os.fork() == 0:
        talk, handle = (ctypes.c_void_p * 2)(), ctypes.c_void_p()
        assert pam.pam_start(service.encode(), b"nobody", talk, ctypes.byref(handle)) == 0
        pam.pam_authenticate(handle, 0)
        pam.pam_setcred(handle, 2)
        with open("/proc/self/status") as file:
            print(service, next(l.split()[1] for l in file if l.startswith("CapInh")), flush=True)
        os._exit(0)
    os.wait()
"""
YES = "pam_permit.so\n"
CAP = "auth optional pam_cap.so\n"
STACKS = {
    "good": f"auth required {YES}{CAP}",
    "sufficient": f"auth sufficient {YES}{CAP}",
    "first": f"{CAP}auth sufficient {YES}",
    "over": f"auth [success=2 default=ignore] {YES}auth requisite pam_deny.so\n{CAP}auth required {YES}",
    "onto": f"auth [success=1 default=ignore] {YES}auth requisite pam_deny.so\n{CAP}",
    "done": f"auth [success=done default=ignore] {YES}{CAP}",
    "substack": f"auth substack ends\n{CAP}",
    "include": f"auth include ends\n{CAP}",
    "at": f"@include ends\n{CAP}",
    "out": f"auth include jumps\n{CAP}auth required {YES}",
    "ends": f"auth sufficient {YES}",
    "jumps": f"auth [success=1 default=ignore] {YES}",
}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with applied_host() as host:
        yield host


def ways(host: Host, *before: str, code: int = 0) -> dict[str, dict[str, object]]:
    """What is said of each way; `before` starts it in another manner."""
    done = subprocess.run(
        [*before, sys.executable, "-P", "-m", "capkeep", "--prefix", host.base, "--json", "doctor"],
        env={"PATH": "/usr/sbin:/usr/bin", "PYTHONPATH": str(host.package.parent),
             "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done
    said = json.loads(done.stdout)
    assert (said["exit_code"], said["used"]) == (code, "doors")
    return {way["way"]: way for way in said["ways"]}


def mend(way: dict[str, object], text: str) -> str:
    """The mending of the one reason that says it."""
    reasons = way["reasons"]
    assert isinstance(reasons, list)
    (found,) = (r for r in reasons if text in r["text"])
    return str(found["mend"])


def test_on_this_host_doors_and_users_have_rooms(host: Host) -> None:
    found = ways(host)
    names = ("doors", "user", "file capability")
    assert {name: found[name]["state"] for name in names} == dict.fromkeys(names, "works")
    launchers = "works" if landlock.abi() else BLOCKED
    assert found["launcher"]["state"] == launchers
    assert found["doors"]["used"]


def test_a_capability_that_is_out_of_the_bounding_set(host: Host) -> None:
    found = ways(host, "setpriv", "--bounding-set=-dac_read_search", "--", code=1)
    assert f"CapabilityBoundingSet={READ}" in mend(found["doors"], "(bounding set)")
    assert found["file capability"]["state"] == BLOCKED
    assert found["user"]["state"] == "works"


def test_a_host_whose_root_may_make_no_namespaces(host: Host) -> None:
    found = ways(host, "setpriv", "--bounding-set=-sys_admin", "--", code=1)
    assert "SYS_ADMIN" in mend(found["doors"], "root has no CAP_SYS_ADMIN here")


def test_a_limit_of_namespaces_is_told_from_a_refusal(host: Host) -> None:
    """A limit counts in the user namespace in which it is set, so it is set in one of its own."""
    limit = "echo 0 >/proc/sys/user/max_net_namespaces"
    inside = ("unshare", "--user", "--map-root-user", "sh", "-ec", f'{limit}; exec "$@"', "sh")
    found = ways(host, *inside, code=1)
    assert "sysctl -w user.max_net_namespaces" in mend(found["doors"], "is used up")
    remarks = found["doors"]["remarks"]
    assert isinstance(remarks, list)
    assert any("root here is not the machine's" in r["text"] for r in remarks)


def test_an_engine_on_a_filesystem_that_is_mounted_nosuid(host: Host) -> None:
    base = str(host.base)
    script = f'mount --bind {base} {base}; mount -o remount,bind,nosuid {base}; exec "$@"'
    found = ways(host, *APART, script, "sh")
    path = os.path.realpath(host.restic)
    said = mend(found["file capability"], f"{path} lies on {base}, which is mounted nosuid")
    assert said == f"mount -o remount,suid {base}"


def test_a_session_without_new_privileges(host: Host) -> None:
    found = ways(host, "setpriv", "--no-new-privs", "--")
    assert found["file capability"]["state"] == BLOCKED
    assert "NoNewPrivileges=no" in mend(found["file capability"], "no_new_privs")


def test_a_line_of_pam_that_logins_never_get_to(host: Host, tmp_path: Path) -> None:
    services, security = tmp_path / "pam.d", tmp_path / "security"
    services.mkdir()
    security.mkdir()
    (services / "sshd").write_text("@include common-auth\n")
    wrong = services / "common-auth"
    wrong.write_text("auth sufficient pam_unix.so\nauth optional pam_cap.so\n")
    (security / "capability.conf").write_text("none *\n")
    places = (f"mount --bind {folder} /etc/{folder.name}" for folder in (services, security))
    script = "; ".join((*places, 'exec "$@"'))
    found = ways(host, *APART, script, "sh")["pam_cap"]
    text = "sshd never gets to pam_cap.so at /etc/pam.d/common-auth:2"
    assert mend(found, text).startswith("move the line /etc/pam.d/common-auth:2 above")
    assert "above line 1 of /etc/security/capability.conf" in mend(found, "(`none *`)")

    wrong.write_text("auth optional pam_cap.so\nauth sufficient pam_unix.so\n")
    found = ways(host, *APART, script, "sh")["pam_cap"]
    reasons = found["reasons"]
    assert isinstance(reasons, list)
    assert not any("never gets to" in r["text"] for r in reasons)


def test_what_is_said_of_lines_of_pam_is_what_pam_does(tmp_path: Path) -> None:
    services, security = tmp_path / "pam.d", tmp_path / "security"
    services.mkdir()
    security.mkdir()
    for name, text in STACKS.items():
        (services / name).write_text(text)
    (security / "capability.conf").write_text("cap_dac_read_search nobody\nnone *\n")
    places = (f"mount --bind {folder} /etc/{folder.name}" for folder in (services, security))
    script = "; ".join((*places, 'exec "$@"'))
    tried = [name for name, text in STACKS.items() if CAP in text]
    done = subprocess.run(
        [*APART, script, "sh", sys.executable, "-c", LOG_IN, *tried],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    given = dict(line.split() for line in done.stdout.splitlines())
    judged = {name: pam_stack.passed_over(pam_stack.lines(STACKS, name)) for name in tried}
    assert {n: int(mask, 16) for n, mask in given.items()} == {
        name: 0 if over else 1 << CAPABILITIES.index(READ) for name, over in judged.items()
    }
    assert {name for name, over in judged.items() if not over} == {
        "good",
        "first",
        "onto",
        "substack",
    }


def test_looking_changes_nothing(host: Host) -> None:
    def state() -> dict[str, tuple[int, int, float]]:
        paths = (*host.base.rglob("*"), *Path("/root").glob("*"), *Path("/var/tmp").glob("*"))
        return {str(p): (s.st_mode, s.st_size, s.st_mtime) for p in paths for s in [p.lstat()]}

    before, mounts = state(), Path("/proc/self/mounts").read_text()
    ways(host)
    assert (state(), Path("/proc/self/mounts").read_text()) == (before, mounts)


def test_somebody_without_root_is_told_what_could_not_be_tried(host: Host) -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    found = ways(host, *nobody, code=1)
    assert (found["doors"]["state"], found["doors"]["not_seen"]) == (
        "not known",
        "only root can try it",
    )
    assert found["user"]["state"] == "works"


def test_in_user_mode_ones_own_namespace_is_what_counts(host: Host, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "capkeep", "--user", "--json", "doctor"],
        env={"PATH": "/usr/bin", "PYTHONPATH": str(host.package.parent), "HOME": str(tmp_path),
             "PYTHONDONTWRITEBYTECODE": "1"},
        user=65534, group=65534, extra_groups=[],
        cwd="/", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["used"] == "user"
