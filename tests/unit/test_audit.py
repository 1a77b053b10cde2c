"""What an audit makes of what systemd and the kernel say, and how it is shown."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.errors import EXIT_FINDINGS
from capkeep.host import unit_state
from capkeep.host.audit import by_design
from capkeep.host.finding import Audit, Finding, Kind, Proven
from capkeep.host.probe import REQUEST, seen_from, visit
from capkeep.host.programs import parse_capabilities
from capkeep.kernel.facts import CAPABILITIES, NAMESPACES, Facts
from capkeep.plan.model import (
    Grant,
    Mode,
    Places,
    Plan,
    Repository,
    Room,
    RoomKind,
    Starter,
    Walls,
)
from capkeep.report.audit import as_plain, exit_code, lines
from capkeep.report.style import PLAIN, Style
from capkeep.rooms.protocol import ProtocolError

SOCKET = "capkeep-runner.socket"
TIMER = "capkeep-run-system.timer"
TEMPLATE = "capkeep-keeper-local@.service"
GOOD = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "listening",
    "UnitFileState": "enabled",
    "Result": "success",
    "FragmentPath": f"/etc/systemd/system/{SOCKET}",
    "DropInPaths": "",
    "NeedDaemonReload": "no",
}
READ = "CAP_DAC_READ_SEARCH"
GRANT = Grant("capkeep-reader", 900, 900, capabilities=(READ,), write=("/var/cache/capkeep/r",))
FACTS = Facts(
    pid=2, uids=(900,) * 4, gids=(900,) * 4, groups=(), inheritable=(READ,), permitted=(READ,),
    effective=(READ,), bounding=(READ,), ambient=(READ,), no_new_privs=True, seccomp=2,
    seccomp_filters=30, landlock=7, namespaces=tuple((n, 7) for n in NAMESPACES),
    separated=("ipc", "mnt", "net", "uts"), interfaces=("lo",),
    writable=("/dev/null", "/var/cache/capkeep/r"), dumpable=False,
)  # fmt: skip
WALLS = Walls(("mnt", "ipc", "uts", "net"), ("/proc",), Starter.SYSTEMD)
PROVEN = Proven("reader-j-r", "room", GRANT, WALLS, FACTS, (), ())


def judged(name: str = SOCKET, *, enabled: bool = True, **changed: str) -> list[Finding]:
    shown = GOOD | {"FragmentPath": f"/etc/systemd/system/{name}"} | changed
    return list(unit_state.judge(name, shown, enabled=enabled))


def test_a_unit_as_it_should_be_is_no_finding() -> None:
    assert judged() == []
    assert judged(TIMER, SubState="waiting") == []
    assert judged(TEMPLATE, enabled=False, ActiveState="inactive", UnitFileState="static") == []


@pytest.mark.parametrize(
    "changed,kind,part,mend",
    [
        ({"LoadState": "masked"}, Kind.UNIT, "masked", "systemctl unmask"),
        ({"LoadState": "bad-setting"}, Kind.UNIT, "bad-setting", "capkeep apply"),
        ({"NeedDaemonReload": "yes"}, Kind.RELOAD, "not read it again", "systemctl daemon-reload"),
        ({"ActiveState": "failed", "Result": "trigger-limit-hit"}, Kind.UNIT, "trigger-limit-hit",
         f"systemctl reset-failed {SOCKET}; systemctl start {SOCKET}"),
        ({"ActiveState": "inactive", "SubState": "dead"}, Kind.UNIT, "does not listen",
         f"systemctl enable --now {SOCKET}"),
        ({"UnitFileState": "disabled"}, Kind.UNIT, "after a restart",
         f"systemctl enable --now {SOCKET}"),
        ({"FragmentPath": "/run/systemd/transient/x"}, Kind.UNIT, "/run/systemd/transient/x",
         "rm /run/systemd/transient/x"),
    ],
)  # fmt: skip
def test_what_can_be_wrong_with_a_unit(
    changed: dict[str, str], kind: Kind, part: str, mend: str
) -> None:
    (finding,) = judged(**changed)
    assert (finding.kind, finding.what) == (kind, SOCKET)
    assert part in finding.text
    assert finding.mend.startswith(mend)


def test_a_timer_that_will_not_fire_again_is_a_finding() -> None:
    (finding,) = judged(TIMER, SubState="elapsed")
    assert "does not wait for its time" in finding.text


def test_systemctl_show_of_several_units_is_taken_apart() -> None:
    text = "Id=a.socket\nResult=success\nDescription=x=y\n\nId=b@capkeep-audit.service\nnoise\n"
    assert unit_state.parse(text) == [
        {"Id": "a.socket", "Result": "success", "Description": "x=y"},
        {"Id": "b@capkeep-audit.service"},
    ]


def test_settings_of_a_drop_in() -> None:
    text = """
# a comment
[Service]
ProtectSystem = \\
# in between
  no
; another
Environment="A=1"
AmbientCapabilities=
no assignment
"""
    assert unit_state.settings(text) == (
        ("ProtectSystem", "no"), ("Environment", '"A=1"'), ("AmbientCapabilities", ""),
    )  # fmt: skip


@given(st.text())
def test_any_text_has_settings(text: str) -> None:
    unit_state.settings(text)


@pytest.mark.parametrize(
    "path,mend",
    [
        (f"/etc/systemd/system/{TEMPLATE}.d/a.conf", f"systemctl revert {TEMPLATE}"),
        ("/etc/systemd/system/service.d/all.conf",
         "rm /etc/systemd/system/service.d/all.conf; systemctl daemon-reload"),
        (f"/etc/systemd/system.control/{TEMPLATE}.d/50-x.conf",
         f"rm /etc/systemd/system.control/{TEMPLATE}.d/50-x.conf; systemctl daemon-reload"),
    ],
)  # fmt: skip
def test_a_drop_in_is_named_with_what_it_sets(path: str, mend: str) -> None:
    found = unit_state.drop_in(TEMPLATE, path, (("PrivateNetwork", "no"), ("User", "root")))
    assert (found.kind, found.what, found.mend) == (Kind.DROP_IN, TEMPLATE, mend)
    assert found.text == f"{path} changes it: PrivateNetwork, User"
    assert found.detail == "PrivateNetwork=no\nUser=root"


def test_nothing_that_confines_is_harmless_in_a_drop_in() -> None:
    weakening = ("Private", "Protect", "Restrict", "SystemCall", "Capab", "Ambient", "Exec", "Bind")
    assert not [name for name in unit_state.HARMLESS if name.startswith(weakening)]


def test_file_capabilities_are_read_as_the_kernel_writes_them() -> None:
    # struct vfs_cap_data: magic with the effective flag, then permitted and inheritable, low and high
    read = struct.pack("<5I", 0x02000001, 1 << 2, 0, 0, 0)
    assert parse_capabilities(read) == (READ,)
    assert parse_capabilities(struct.pack("<6I", 0x03000000, 0, 1 << 2, 0, 0, 1000)) == (READ,)
    high = struct.pack("<5I", 0x02000001, 0, 0, 1 << 8, 0)
    assert parse_capabilities(high) == (CAPABILITIES[40],)
    assert parse_capabilities(struct.pack("<3I", 0x01000001, 1 << 2, 0)) == (READ,)


@given(st.binary(max_size=40))
def test_any_attribute_says_something(raw: bytes) -> None:
    assert parse_capabilities(raw)


def test_a_room_is_compared_with_this_hosts_namespaces() -> None:
    host = {"net": 7, "mnt": 8}
    assert seen_from(FACTS._replace(separated=("net", "mnt")), host).separated == ("mnt",)


@pytest.mark.parametrize(
    "said,result",
    [
        (b'{"event":"proof","process":"room"}\n{"event":"result","failure":null}\n', None),
        (b'{"event":"result","failure":"locked","text":"busy"}\n', "locked"),
        (b'{"event":"end","text":"refused"}\n', "refused"),
    ],
)
def test_a_room_behind_a_socket_is_asked(tmp_path: Path, said: bytes, result: str | None) -> None:
    with answering(tmp_path, said) as path:
        heard: list[object] = []
        assert visit(path, heard.append)["failure"] == result
    assert len(heard) == said.count(b"proof")


def test_a_room_that_says_nothing_to_the_end_is_no_result(tmp_path: Path) -> None:
    with answering(tmp_path, b'{"event":"proof"}\n') as path, pytest.raises(ProtocolError):
        visit(path, lambda _: None)
    with pytest.raises(FileNotFoundError):
        visit(str(tmp_path / "none"), lambda _: None)


@contextlib.contextmanager
def answering(place: Path, said: bytes) -> Iterator[str]:
    """A socket on which one caller gets an answer to his request."""
    path = str(place / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(20)
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as caller:
                assert json.loads(caller.recv(4096)) == REQUEST
                caller.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        yield path
        thread.join(20)


def audit(*findings: Finding, room: Proven = PROVEN) -> Audit:
    return Audit(findings, (room,), ("this is so",), ("that is missing",))


def test_without_findings_the_exit_code_is_zero() -> None:
    text = lines(audit(), PLAIN)
    assert exit_code(audit()) == 0
    assert text[-1] == "no findings"
    assert "  this is so" in text and "  that is missing" in text
    row = next(line for line in text if line.startswith("reader-j-r"))
    assert "→" not in row
    assert "DAC_READ_SEARCH" in row


def test_a_finding_is_told_with_what_mends_it() -> None:
    finding = Finding(Kind.DROP_IN, "x.service", "weak\x1b[31m", "systemctl revert x", "-a\n+b")
    text = lines(audit(finding), PLAIN)
    assert text[:4] == [
        "drop-in  x.service: weak\\x1b[31m", "  mend: systemctl revert x", "    -a", "    +b",
    ]  # fmt: skip
    assert text[-1] == "1 finding"
    assert exit_code(audit(finding)) == EXIT_FINDINGS
    assert "\x1b[31mdrop-in\x1b[0m" in lines(audit(finding), Style(colour=True))[0]


def test_a_long_difference_is_cut() -> None:
    finding = Finding(Kind.DRIFT, "f", "t", "m", "\n".join(map(str, range(100))) + "\n" + "x" * 999)
    text = lines(audit(finding), PLAIN)
    assert "    … and 71 lines more" in text
    assert max(map(len, text)) < 300


def test_what_differs_from_the_grant_is_shown_beside_it() -> None:
    facts = FACTS._replace(
        uids=(0, 0, 0, 0), bounding=(READ, "CAP_SYS_ADMIN"), no_new_privs=False,
        separated=("ipc", "mnt", "uts"), interfaces=("lo", "eth0"),
        writable=(*FACTS.writable, "/usr"),
    )  # fmt: skip
    room = PROVEN._replace(facts=facts, weaker=("/usr is mounted writable (…)",))
    row = next(line for line in lines(audit(room=room), PLAIN) if line.startswith("reader-j-r"))
    for part in (
        "900 → 0", "DAC_READ_SEARCH → DAC_READ_SEARCH SYS_ADMIN", "yes → NO",
        "ipc mnt net uts → ipc mnt uts", "none → eth0", "/var/cache/capkeep/r → also /usr",
    ):  # fmt: skip
        assert part in row


def test_json_holds_what_was_granted_and_found() -> None:
    finding = Finding(Kind.SECRET, "/s", "open", "chmod 600 /s")
    plain = json.loads(json.dumps(as_plain(audit(finding))))
    assert plain["exit_code"] == EXIT_FINDINGS
    assert plain["findings"] == [
        {"kind": "secret", "what": "/s", "text": "open", "mend": "chmod 600 /s", "detail": ""}
    ]
    (room,) = plain["rooms"]
    assert room["granted"]["uid"] == 900
    assert room["granted"]["writable"] == ["/var/cache/capkeep/r", "/proc"]
    assert room["found"]["uids"] == [900] * 4
    assert plain["exceptions"] == ["this is so"]
    assert plain["left_out"] == ["that is missing"]


def plan(starter: Starter, mode: Mode = Mode.SYSTEM) -> Plan:
    held = Grant("capkeep-restorer", 905, 905, capabilities=("CAP_CHOWN",))
    return Plan(
        mode=mode, places=Places(*(["/p"] * 5)), group=1, interpreter="/i", package="/k",
        repositories=(Repository("r", "restic", "b2:x", "/usr/bin/restic", engine_network=True),),
        jobs=(), rooms=(Room("restorer-r", RoomKind.RESTORER, held),), capkeep_version="1",
        starter=starter, accepted=("PrivateNetwork",),
    )  # fmt: skip


def test_exceptions_by_design_are_named() -> None:
    said = "\n".join(by_design(plan(Starter.DOORS)))
    assert "`capkeep doors` runs as root" in said
    assert "CHOWN" in said
    assert "engine of r has the network" in said
    assert "accept-missing" not in said
    said = "\n".join(by_design(plan(Starter.SYSTEMD)))
    assert "doors" not in said
    assert "without PrivateNetwork" in said
    assert "root" not in "\n".join(by_design(plan(Starter.DOORS, Mode.USER)))
