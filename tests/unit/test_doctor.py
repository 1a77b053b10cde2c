"""What of a host makes a way to the one capability work, and what is said where it does not."""

import contextlib
import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.errors import StepError
from capkeep.host import far_seen, pam_stack
from capkeep.host.granting import judge, works
from capkeep.host.grants import last_said
from capkeep.host.ways_seen import (
    APPARMOR,
    KILLED,
    MAXIMUM,
    READ,
    USERNS_CLONE,
    Files,
    Held,
    Judged,
    Pam,
    Seen,
    State,
    Systemd,
    Way,
)
from capkeep.kernel.facts import CAPABILITIES
from capkeep.report.doctor import as_plain, exit_code, lines
from capkeep.report.style import PLAIN

ADMIN = "CAP_SYS_ADMIN"
KINDS = ("mnt", "cgroup", "uts", "ipc", "user", "pid", "net")
CONF = pam_stack.CONFIG
COMMON = """\
# a comment
auth	[success=1 default=ignore]	pam_unix.so nullok
auth	requisite	pam_deny.so
auth	required	pam_permit.so
auth	optional	pam_cap.so
"""
SERVICE = "@include common-auth\naccount required pam_nologin.so\n"
USER = "capkeep-reader"
PAM = Pam(
    module=True,
    texts={"common-auth": COMMON, "sshd": SERVICE, "login": SERVICE},
    configs={CONF: f"cap_dac_read_search {USER}\nnone *\n"},
    users=((USER, ()),),
    launchers=("/usr/local/sbin/read-all",),
    use_pam=True,
)
GOOD = Seen(
    root=True, bounding=CAPABILITIES, no_new_privs=False, filters=0, landlock=7, own_ids=True,
    missing=(), namespaces=dict.fromkeys(KINDS, 0), mounts=0, room="", own_room="",
    settings={MAXIMUM: "15000"}, systemd=Systemd(True, 257, CAPABILITIES), files=Files(trial=""),
    pam=PAM,
)  # fmt: skip


def without(*names: str) -> tuple[str, ...]:
    return tuple(c for c in CAPABILITIES if c not in names)


def refused(*names: str, number: int = errno.EPERM) -> dict[str, int]:
    return {name: number if name in names else 0 for name in KINDS}


def one(seen: Seen, way: Way) -> Judged:
    (found,) = (j for j in judge(seen, Way.SYSTEMD) if j.way is way)
    return found


def common(text: str) -> Pam:
    return PAM._replace(texts=PAM.texts | {"common-auth": text})


def test_where_nothing_is_in_the_way_every_way_works() -> None:
    ways = judge(GOOD, Way.DOORS)
    assert [w.way for w in ways] == list(Way)
    assert {w.state for w in ways} == {State.WORKS}
    assert [w.way for w in ways if w.used] == [Way.DOORS]
    assert not [r for w in ways for r in w.reasons]


@pytest.mark.parametrize(
    "way,seen,text,mend",
    [
        (Way.SYSTEMD, GOOD._replace(systemd=Systemd()), "does not run this host", "capkeep doors"),
        (Way.SYSTEMD, GOOD._replace(systemd=Systemd(True, 247, CAPABILITIES)), "247 is older than 252", "capkeep doors"),
        (Way.SYSTEMD, GOOD._replace(systemd=Systemd(True, 257, without(READ))), "process 1 may not have", "--cap-add DAC_READ_SEARCH"),
        (Way.SYSTEMD, GOOD._replace(namespaces=refused("net"), filters=1), "PrivateNetwork= separates nothing", 'accept-missing = ["PrivateNetwork"]'),
        (Way.SYSTEMD, GOOD._replace(namespaces=refused("ipc")), "PrivateIPC= separates nothing", "security.nesting"),
        (Way.SYSTEMD, GOOD._replace(systemd=Systemd(True, 257, proceeding=("PrivateNetwork=yes is configured, proceeding without",))), "when rooms last started", "accept-missing"),
        (Way.DOORS, GOOD._replace(missing=("/usr/bin/bwrap",)), "/usr/bin/bwrap is not there", "apt-get install bubblewrap"),
        (Way.DOORS, GOOD._replace(missing=("/usr/bin/setpriv",)), "/usr/bin/setpriv is not there", "apt-get install util-linux"),
        (Way.DOORS, GOOD._replace(bounding=without(READ)), "(bounding set)", "--cap-add DAC_READ_SEARCH"),
        (Way.DOORS, GOOD._replace(bounding=without(ADMIN), namespaces=refused("mnt", "net")), "kind mnt, net can be made: Operation not permitted; root has no CAP_SYS_ADMIN", "--cap-add SYS_ADMIN"),
        (Way.DOORS, GOOD._replace(namespaces=refused("pid"), filters=2), "a system call filter around this host", "seccomp=unconfined"),
        (Way.DOORS, GOOD._replace(namespaces=refused("pid", number=KILLED), filters=2), "a system call filter ends whoever tries", "seccomp=unconfined"),
        (Way.DOORS, GOOD._replace(namespaces=refused("uts", number=errno.ENOSPC)), "user.max_uts_namespaces is used up", "sysctl -w user.max_uts_namespaces"),
        (Way.DOORS, GOOD._replace(namespaces=refused("ipc", number=errno.EINVAL)), "this kernel has none", "boot a kernel"),
        (Way.DOORS, GOOD._replace(mounts=errno.EACCES), "nothing can be mounted", "more rights"),
        (Way.DOORS, GOOD._replace(room="bwrap: Can't mount proc"), "Can't mount proc", "another way"),
        (Way.LAUNCHER, GOOD._replace(landlock=0), "has no Landlock", "lsm="),
        (Way.LAUNCHER, GOOD._replace(no_new_privs=True), "no_new_privs", "NoNewPrivileges=no"),
        (Way.LAUNCHER, GOOD._replace(bounding=without(READ)), "(bounding set)", "--cap-add"),
        (Way.LAUNCHER, GOOD._replace(files=Files("it has CapEff: 0")), "it has CapEff: 0", "another way"),
        (Way.LAUNCHER, GOOD._replace(own_room="bwrap: words"), "bwrap: words", "more rights"),
        (Way.USER, GOOD._replace(own_room="no", settings={USERNS_CLONE: "0"}), "only root may make user namespaces", f"sysctl -w {USERNS_CLONE}=1"),
        (Way.USER, GOOD._replace(own_room="no", settings={MAXIMUM: "0"}), "there are no user namespaces", f"sysctl -w {MAXIMUM}"),
        (Way.USER, GOOD._replace(own_room="no", settings={APPARMOR: "1"}), "no AppArmor profile", "/etc/apparmor.d/bwrap"),
        (Way.USER, GOOD._replace(own_room="bwrap: words"), "bwrap: words", "more rights"),
        (Way.USER, GOOD._replace(missing=("/usr/bin/bwrap",), own_room=None), "bwrap", "apt-get"),
        (Way.FILE, GOOD._replace(files=Files("", nosuid=(("/x/restic", "/x"),))), "/x, which is mounted nosuid", "mount -o remount,suid /x"),
        (Way.FILE, GOOD._replace(files=Files("", no_attributes=(("/x/restic", "/x"),))), "keeps no attributes", "another filesystem"),
        (Way.FILE, GOOD._replace(no_new_privs=True, files=Files()), "no_new_privs", "NoNewPrivileges=no"),
        (Way.FILE, GOOD._replace(bounding=without(READ), files=Files("Operation not permitted")), "(bounding set)", "--cap-add"),
        (Way.FILE, GOOD._replace(files=Files("it has CapEff: 0")), "it has CapEff: 0", "another way"),
        (Way.PAM, GOOD._replace(pam=None), "no /etc/pam.d", "another way"),
        (Way.PAM, GOOD._replace(pam=PAM._replace(module=False)), "pam_cap.so is not installed", "apt-get install libpam-cap"),
        (Way.PAM, GOOD._replace(pam=PAM._replace(texts={})), "neither sshd nor login", "openssh-server"),
        (Way.PAM, GOOD._replace(pam=PAM._replace(launchers=())), "inheritable alone", 'launcher-mark = "ei"'),
        (Way.PAM, GOOD._replace(pam=PAM._replace(configs={})), f"there is no {CONF}", USER),
        (Way.PAM, GOOD._replace(pam=PAM._replace(configs={CONF: f"none *\ncap_dac_read_search {USER}\n"})), "its line 1 (`none *`) is the first", f"`cap_dac_read_search {USER}` above line 1"),
        (Way.PAM, GOOD._replace(pam=PAM._replace(configs={CONF: ""})), f"gives {USER} nothing", f"`cap_dac_read_search {USER}` to"),
        (Way.PAM, GOOD._replace(pam=common("auth required pam_unix.so\n")), "no auth line names it", "pam-auth-update --enable capability"),
        (Way.PAM, GOOD._replace(pam=PAM._replace(texts={"sshd": "auth required pam_unix.so\n"})), "sshd does not run", "first line of /etc/pam.d/sshd"),
        (Way.PAM, GOOD._replace(pam=common("auth sufficient pam_unix.so\nauth optional pam_cap.so\n")), "when pam_unix.so at /etc/pam.d/common-auth:1 says yes, it ends there (sufficient)", "move the line /etc/pam.d/common-auth:2 above /etc/pam.d/common-auth:1"),
        (Way.PAM, GOOD._replace(pam=PAM._replace(use_pam=False, texts={"sshd": COMMON})), "UsePAM no", "UsePAM yes"),
        (Way.PAM, GOOD._replace(bounding=without(READ)), "no login of his", "--cap-add"),
        (Way.PAM, GOOD._replace(files=Files("it has none")), "also not by `ei`: it has none", "file capability"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_said_with_what_mends_it(
    way: Way, seen: Seen, text: str, mend: str
) -> None:
    found = one(seen, way)
    assert found.state is State.BLOCKED
    reasons = [r for r in found.reasons if text in r.text]
    assert reasons and all(mend in r.mend for r in reasons)


@pytest.mark.parametrize(
    "way,seen,text",
    [
        (Way.SYSTEMD, GOOD._replace(namespaces=refused("net"), systemd=Systemd(True, 257, None, ("PrivateNetwork",))), "accept-missing allows it"),
        (Way.SYSTEMD, GOOD._replace(systemd=Systemd(True, 252, None, left_out=("PrivateUsers: no",))), "left out: PrivateUsers"),
        (Way.SYSTEMD, GOOD._replace(systemd=Systemd(True, 257, proceeding=("X=yes is configured, but",))), "X=yes"),
        (Way.SYSTEMD, GOOD._replace(own_ids=False), "root here is not the machine's"),
        (Way.DOORS, GOOD._replace(own_ids=False), "root here is not the machine's"),
        (Way.DOORS, GOOD._replace(landlock=0), "no Landlock"),
        (Way.DOORS, GOOD._replace(namespaces=refused("cgroup", "user"), no_new_privs=True, landlock=0), "no Landlock"),
        (Way.USER, GOOD._replace(settings={APPARMOR: "1", USERNS_CLONE: "0"}), "one's own files"),
        (Way.FILE, GOOD._replace(files=Files("", no_new_privs=("sshd",))), "sshd runs with no_new_privs"),
        (Way.PAM, GOOD._replace(pam=PAM._replace(use_pam=False)), "UsePAM no"),
        (Way.PAM, GOOD._replace(pam=PAM._replace(texts=PAM.texts | {"login": "auth required pam_unix.so\n"})), "login does not run"),
    ],
)  # fmt: skip
def test_what_does_not_keep_a_way_from_working_is_said_too(way: Way, seen: Seen, text: str) -> None:
    found = one(seen, way)
    assert found.state is State.WORKS and not found.reasons
    assert [r for r in found.remarks if text in r.text]


@pytest.mark.parametrize(
    "package,hook,overridden,text",
    [
        ("restic", "", False, "next upgrade of restic takes it away"),
        ("restic", "", True, "dpkg-statoverride keeps owner and mode alone"),
        ("restic", "/etc/apt/apt.conf.d/99cap", False, "/etc/apt/apt.conf.d/99cap sets it again"),
        ("", "", False, "whatever replaces the file takes it away"),
    ],
)
def test_an_engine_that_has_a_capability_now(
    package: str, hook: str, overridden: bool, text: str
) -> None:
    held = Held("/usr/bin/restic", (READ,), package, hook, overridden)
    remarks = one(GOOD._replace(files=Files("", held=(held,))), Way.FILE).remarks
    (found,) = (r for r in remarks if "/usr/bin/restic has" in r.text)
    assert text in found.text
    assert found.mend == "setcap -r /usr/bin/restic"


def test_what_systemd_said_counts_by_the_last_start() -> None:
    start = "Starting capkeep-runner@1-2-0.service - capkeep: runner (1-2-0)..."
    left = "capkeep-{}@1-2-0.service: PrivateNetwork=yes is configured, but no, ignoring: EPERM"
    lines = [start, left.format("runner"), left.format("reader-a-b")]
    assert last_said(lines) == ("PrivateNetwork=yes is configured, but no, ignoring: EPERM",)
    assert last_said(lines[1:]) == last_said(lines)
    assert last_said([*lines, start]) == ()
    assert last_said([]) == ()


def test_without_root_nothing_that_was_not_tried_is_said_to_work() -> None:
    seen = GOOD._replace(root=False, namespaces=None, mounts=None, room=None, files=Files())
    states = {w.way: w.state for w in judge(seen, Way.SYSTEMD)}
    assert states == {
        Way.SYSTEMD: State.WORKS, Way.DOORS: State.UNKNOWN, Way.LAUNCHER: State.UNKNOWN,
        Way.USER: State.WORKS, Way.FILE: State.UNKNOWN, Way.PAM: State.WORKS,
    }  # fmt: skip
    assert "may not try it" in one(seen, Way.SYSTEMD).not_seen
    assert not works(judge(seen, Way.DOORS))
    assert one(seen._replace(missing=("/usr/bin/bwrap",)), Way.DOORS).state is State.BLOCKED


def test_what_keeps_a_session_from_trying_is_not_said_of_systemd() -> None:
    seen = GOOD._replace(bounding=without(ADMIN), namespaces=refused(*KINDS))
    found = one(seen, Way.SYSTEMD)
    assert found.state is State.WORKS and found.not_seen
    blocked = seen._replace(systemd=Systemd(True, 257, without(ADMIN)))
    assert one(blocked, Way.SYSTEMD).state is State.BLOCKED


@pytest.mark.parametrize(
    "text,over",
    [
        (COMMON, ""),
        ("auth [success=2 default=ignore] pam_unix.so\nauth requisite pam_deny.so\nauth optional pam_cap.so\nauth required pam_permit.so\n", "common:1"),
        ("auth [success=2 default=ignore] pam_unix.so\nauth [success=1 default=ignore] pam_sss.so\nauth requisite pam_deny.so\nauth optional pam_cap.so\n", ""),
        ("auth [success=2 default=ignore] pam_unix.so\nauth [success=2 default=ignore] pam_sss.so\nauth requisite pam_deny.so\nauth optional pam_cap.so\n", "common:2"),
        ("auth [success=done new_authtok_reqd=done default=ignore] pam_unix.so\nauth optional pam_cap.so\n", "common:1"),
        ("auth [default=done] pam_unix.so\nauth optional pam_cap.so\n", "common:1"),
        ("auth \\\n  sufficient pam_unix.so\nauth optional pam_cap.so\n", "common:1"),
        ("-auth SUFFICIENT /lib/security/pam_unix.so\nauth optional pam_cap.so\n", "common:1"),
        ("auth optional pam_cap.so\nauth sufficient pam_unix.so\nauth required pam_deny.so\n", ""),
        ("auth sufficient pam_rootok.so\nauth required pam_unix.so\nauth optional pam_cap.so\n", ""),
        ("auth required pam_unix.so\nauth requisite pam_nologin.so\nauth optional pam_cap.so\n", ""),
        ("auth substack inner\nauth optional pam_cap.so\n", ""),
        ("auth include inner\nauth optional pam_cap.so\n", "inner:1"),
        ("account sufficient pam_unix.so\nsession sufficient pam_x.so\nauth optional pam_cap.so\n", ""),
        ("#auth sufficient pam_unix.so\nauth optional pam_cap.so\n", ""),
    ],
)  # fmt: skip
def test_a_line_that_keeps_logins_from_getting_to_pam_cap(text: str, over: str) -> None:
    texts = {"sshd": "@include common\n", "common": text, "inner": "auth sufficient pam_unix.so\n"}
    stack = pam_stack.lines(texts, "sshd")
    assert pam_stack.find(stack)
    found = pam_stack.passed_over(stack)
    assert (f"{found.file}:{found.number}" if found else "") == over


def test_files_that_include_each_other_end() -> None:
    texts = {"a": "@include b\nauth optional pam_cap.so\n", "b": "@include a\n"}
    assert pam_stack.find(pam_stack.lines(texts, "a"))


@pytest.mark.parametrize(
    "text,given",
    [
        ("cap_dac_read_search alice", True),
        ("CAP_DAC_READ_SEARCH alice", True),
        ("2 alice", True),
        ("cap_chown,cap_dac_read_search bob alice", True),
        ("^cap_dac_read_search alice", True),
        ("all alice", True),
        ("cap_dac_read_search *", True),
        ("cap_dac_read_search @wheel", True),
        ("!cap_dac_read_search alice", False),
        ("cap_dac_read_search @staff", False),
        ("cap_dac_read_search bob", False),
        ("# cap_dac_read_search alice", False),
        ("none alice\ncap_dac_read_search alice", False),
        ("cap_dac_read_search alice\nnone *", True),
        ("12 alice", False),
        ("", False),
    ],
)
def test_what_capability_conf_gives(text: str, given: bool) -> None:
    found = pam_stack.entry(text, "alice", ("wheel",))
    assert pam_stack.gives(found, READ, CAPABILITIES.index(READ)) == given


def test_another_configuration_file_of_pam_cap_is_the_one_that_counts() -> None:
    text = COMMON.replace("pam_cap.so", "pam_cap.so debug config=/etc/own.conf")
    seen = GOOD._replace(pam=common(text)._replace(configs={"/etc/own.conf": "none *"}))
    assert any("/etc/own.conf gives" in r.text for r in one(seen, Way.PAM).reasons)


def test_the_report_is_for_people_and_for_machines() -> None:
    seen = GOOD._replace(bounding=without(READ), own_room=None)
    ways = judge(seen, Way.DOORS)
    assert exit_code(ways) == 1
    plain = json.loads(json.dumps(as_plain(ways)))
    assert (plain["exit_code"], plain["used"]) == (1, "doors")
    doors = next(w for w in plain["ways"] if w["way"] == "doors")
    assert doors["state"] == "does not work" and doors["used"]
    assert doors["reasons"][0]["mend"]
    told = list(lines(ways, PLAIN))
    at = told.index("doors: does not work  (used here)")
    assert "bounding set" in told[at + 1] and told[at + 2].startswith("    mend: ")
    assert "systemd: works" in told
    assert told[told.index("user: not known") + 2] == "  not looked at: it was not tried"
    assert exit_code(judge(GOOD, Way.PAM)) == 0


def test_what_a_file_says_is_made_harmless() -> None:
    seen = GOOD._replace(files=Files("", nosuid=(("/x\x1b[2J/restic", "/x"),)))
    assert not any("\x1b" in line for line in lines(judge(seen, Way.DOORS), PLAIN))


# -- told from afar

TOLD = """\
what a login shell says
=kernel
|6.1.0
=uid
|0
=status
|CapBnd:\t000001ffffffffff
|NoNewPrivs:\t0
=file /proc/self/uid_map
|         0          0 4294967295
=file /proc/self/mountinfo
|1 0 8:1 / / rw - ext4 /dev/vda rw
=landlock
|
=missing
=engines
=modules
=inheriting
|/usr/local/bin/old = cap_dac_read_search+ei
|/usr/local/bin/new cap_dac_read_search=ei
|/usr/local/bin/other cap_dac_read_search=ep
=groups
|capkeep-answerer
=file /etc/pam.d/sshd
|auth include sshd
|auth include sshd
"""


def test_what_is_told_from_afar_is_judged_as_what_is_seen() -> None:
    found = far_seen.read(TOLD, "capkeep-answerer")
    assert (found.kernel, found.has_capkeep) == ("6.1.0", False)
    (pam,) = (way for way in found.ways if way.way is Way.PAM)
    marked = [r.mend.rpartition("/")[2] for r in pam.remarks if "setcap" in r.mend]
    assert marked == ["old", "new"]
    # Nobody told of Landlock: the kernel is new enough for it, and the next one is not.
    old = far_seen.read(TOLD.replace("6.1.0", "5.10.0"), "capkeep-answerer")
    for host, has in ((found, True), (old, False)):
        (way,) = (way for way in host.ways if way.way is Way.LAUNCHER)
        assert ("no Landlock" not in str(way.reasons)) == has


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        TOLD.replace("1ffffffffff", "1" * 100_000),
        TOLD.replace("8:1 / /", "nonsense"),
        f"{TOLD}=try room\n|x\n",
        "=kernel\n|1\n=capkeep\n|" + "[" * 100_000,
        "=kernel\n|1\n=capkeep\n|[]",
    ],
)
def test_a_target_that_tells_nonsense_is_told_so(wrong: str) -> None:
    with pytest.raises(StepError, match="cannot be read"):
        far_seen.read(wrong, "capkeep-answerer")


@given(st.lists(st.sampled_from(TOLD.splitlines()) | st.text(max_size=30), max_size=30))
def test_whatever_a_target_tells_is_judged_or_refused(said: list[str]) -> None:
    with contextlib.suppress(StepError):
        far_seen.read("\n".join((TOLD, *said)), "capkeep-answerer")
