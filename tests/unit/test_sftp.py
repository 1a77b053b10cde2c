"""Targets without capkeep: who has what, what their script does, and how answers are waited for."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.config.mistakes import MistakesError
from capkeep.engines import ENGINES
from capkeep.engines.base import Call
from capkeep.errors import ConfigError
from capkeep.host import hardening
from capkeep.host import units as unit_files
from capkeep.host.enroll_script import Enrolment
from capkeep.host.enroll_sftp import HOME, SERVER, key_line, script, units
from capkeep.plan.compile import compile_plan
from capkeep.plan.model import Access, Job, RoomKind, Starter, Wire
from capkeep.rooms.protocol import ProtocolError
from capkeep.rooms.pull.packets import Packets, Tally
from tests.unit.pulled import SERVER as OWN
from tests.unit.pulled import Host, RootsOwn
from tests.unit.test_enroll import HOSTILE
from tests.unit.test_plan_pull import facts

CONFIG = OWN.replace("[targets.web1]\n", '[targets.web1]\nway = "sftp"\n')
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUu+lVRxuM5N190YfYm7E1kv27Bhh0p/aapXxNRNF7j s@backup1"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr("capkeep.config.load.Owner", RootsOwn)
    return Host(tmp_path.resolve())


def test_who_sees_the_files_and_who_has_the_network_are_two(host: Host) -> None:
    config = host.load(CONFIG)
    plan = compile_plan(config, facts(config))
    reader = plan.room("reader-hosts.web1-pulled.web1")
    link = plan.room("link-hosts.web1-pulled.web1")
    assert (reader.kind, link.kind) == (RoomKind.MOUNTER, RoomKind.LINK)
    assert (reader.grant.network, link.grant.network) == (False, True)
    assert reader.grant.capabilities == link.grant.capabilities == link.grant.held_first == ()
    assert reader.grant.held_first == ("CAP_SETPCAP", "CAP_SYS_ADMIN")
    assert [s.name for s in reader.secrets] == ["password"]
    assert [s.name for s in link.secrets] == ["identity"]
    assert reader.origin is not None
    assert reader.wires == (Wire("vault-pulled.web1", Access.APPEND), Wire(link.name, Access.READ))
    assert reader.grant.uid != link.grant.uid
    assert not link.wires
    assert next(t.user for t in config.targets if t.name == "web1") == "capkeep-sftp"
    assert plan.room("reader-hosts.web2-pulled.web2").kind is RoomKind.PULLER


def test_rooms_that_nobody_as_root_starts_cannot_mount_one(host: Host) -> None:
    config = host.load(CONFIG)
    without_root = facts(config)._replace(starter=Starter.LAUNCHER)
    with pytest.raises(ConfigError, match='target web1: by way = "sftp" a room makes a mount'):
        compile_plan(config, without_root)


@pytest.mark.parametrize("old, new, words", [
    ("[jobs.hosts]\n", "[jobs.hosts]\none-file-system = true\n", "one filesystem"),
    ('engine = "restic"\nlocation = "/srv/backups/{target}"\npassword = { file = "@/of-{target}" }',
     'engine = "rdiff-backup"\nlocation = "/srv/backups/{target}"', "is a mirror"),
])  # fmt: skip
def test_what_such_a_target_cannot_have(host: Host, old: str, new: str, words: str) -> None:
    assert old in CONFIG
    with pytest.raises(MistakesError) as found:
        host.load(CONFIG.replace(old, new))
    assert any(words in mistake.problem for mistake in found.value.mistakes)


def test_only_a_mounter_may_mount(host: Host) -> None:
    config = host.load(CONFIG)
    for room in compile_plan(config, facts(config)).rooms:
        mounts = [line for line in hardening.mounting(room) if "@mount" in line]
        assert bool(mounts) == (room.kind is RoomKind.MOUNTER)


def test_a_room_that_meets_a_target_has_an_end_whatever_holds_it(host: Host) -> None:
    config = host.load(CONFIG.replace("[jobs.hosts]\n", '[jobs.hosts]\ntimeout = "2h"\n'))
    plan = compile_plan(config, facts(config))
    shown = {room.name: ("/",) for room in plan.rooms}
    found = unit_files.render(plan, hardening.Host(257, shown, large_ids=False))
    texts = {unit.name: unit.text.splitlines() for unit in found}
    for kind in ("reader", "link"):
        name = f"capkeep-{kind}-hosts.web1-pulled.web1{'-read' * (kind == 'link')}@.service"
        assert f"RuntimeMaxSec={3 * 3600}" in texts[name]
    assert "MemoryMax=8589934592" in texts["capkeep-reader-hosts.web1-pulled.web1@.service"]
    assert not any("RuntimeMaxSec" in line for line in texts["capkeep-runner@.service"])


@pytest.mark.parametrize("engine, option", [
    ("restic", "--ignore-inode"), ("borg", "--files-cache=mtime,size"),
])  # fmt: skip
def test_an_inode_says_nothing_of_a_change(engine: str, option: str) -> None:
    call = Call(program="/e", repository="/r", cache_dir="/c", tmp_dir="/t", password="p")
    own = Job(name="j", repositories=("r",), include=("/etc",))
    for job in (own, own._replace(target="web1")):
        argv = ENGINES[engine].backup(call, job).argv
        assert (option in argv) == bool(job.target)


def enrolment(*include: str) -> Enrolment:
    return Enrolment("backup1", "backup1.example.org", "web1", "hosts", "restic", KEY, include)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_path_gets_out_of_the_script(hostile: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    text = script(enrolment("/" + hostile.format(touched)), dry_run=True)
    text = text.replace('[ "$(id -u)" = 0 ]', ":")
    said = subprocess.run(
        ["/bin/sh"], input=text, text=True, capture_output=True, timeout=20, check=True
    )
    assert not touched.exists()
    assert key_line(enrolment()) in said.stdout


def _service(enrolment: Enrolment) -> str:
    return next(text for name, text in units(enrolment).items() if name.endswith("@.service"))


def test_nothing_can_be_written_through_it_even_where_everybody_may() -> None:
    (start,) = [s for s in _service(enrolment("/")).splitlines() if s.startswith("ExecStart=")]
    assert "-R" in start.split()


def test_a_server_that_has_vanished_takes_up_no_connection_for_ever() -> None:
    assert "RuntimeMaxSec=10800" in _service(enrolment("/srv")._replace(timeout_seconds=7200))


def test_the_unit_shows_what_the_job_names() -> None:
    service = _service(enrolment("/srv/a b", "/home"))
    shown = [line for line in service.splitlines() if line.startswith("BindReadOnlyPaths=")]
    assert "BindReadOnlyPaths=-/home" in shown
    assert 'BindReadOnlyPaths=-"/srv/a b"' in shown
    assert not any("shadow" in line or line.endswith("=/etc") for line in shown)
    assert "RootDirectory=" not in _service(enrolment("/"))


STUBS = """
for name in getent useradd systemctl chown; do eval "$name() { :; }"; done
"""


class There:
    """A target's root, in a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "units").mkdir()

    def run(self, enrolment: Enrolment, *, remove: bool = False) -> list[str]:
        """The keys that are left when the script is done."""
        text = script(enrolment, remove=remove).replace('[ "$(id -u)" = 0 ]', ":")
        places = {
            HOME: f"{self.folder}/home", "/etc/systemd/system": f"{self.folder}/units",
            "/run/systemd/system": "/", SERVER: "/bin/sh",
        }  # fmt: skip
        for place, ours in places.items():
            text = text.replace(place, ours)
        head, main, action = text.rpartition("\nmain ")
        text = head + STUBS + main + action
        subprocess.run(["/bin/sh"], input=text, text=True, check=True, timeout=20)
        keys = (self.folder / "home/.ssh/authorized_keys").read_text().splitlines()
        return [line.rpartition(" ssh-ed25519 ")[2] for line in keys if line]

    def units(self) -> int:
        return len(list((self.folder / "units").iterdir()))


def with_key(server: str, key: str) -> Enrolment:
    return enrolment("/srv")._replace(server=server, key=f"ssh-ed25519 {key}", canary=False)


def test_a_server_has_the_key_that_it_has_now_and_no_other(tmp_path: Path) -> None:
    there = There(tmp_path)
    (tmp_path / "home/.ssh").mkdir(parents=True)
    own = with_key("backup1.example.org", "AAAAold")
    longer = with_key("backup1.example.org", "AAAAlong")._replace(name="backup1-b")
    assert there.run(longer) == ["AAAAlong"]
    assert there.run(own) == ["AAAAlong", "AAAAold"]
    assert there.run(own._replace(key="ssh-ed25519 AAAAnew")) == ["AAAAlong", "AAAAnew"]
    assert there.run(own._replace(key="ssh-ed25519 AAAAthird"), remove=True) == ["AAAAlong"]
    assert there.run(longer, remove=True) == []
    assert there.units() == 0


def test_two_servers_of_one_short_name_have_each_its_own(tmp_path: Path) -> None:
    there = There(tmp_path)
    first, second = (with_key(f"backup1.{name}.org", f"AAAA{name}") for name in ("one", "two"))
    there.run(first)
    assert there.run(second) == ["AAAAone", "AAAAtwo"]
    assert there.units() == 4
    assert not units(first).keys() & units(second).keys()
    assert there.run(first, remove=True) == ["AAAAtwo"]
    assert there.units() == 2


def packet(kind: int, number: int, body: bytes = b"") -> bytes:
    said = bytes((kind,)) + number.to_bytes(4, "big") + body
    return len(said).to_bytes(4, "big") + said


INIT, VERSION = packet(1, 3), packet(2, 3, b"extensions")
READ, DATA, STATUS = 5, 103, 101


@given(st.lists(st.binary(max_size=20)), st.integers(1, 7))
def test_packets_are_found_however_they_come(bodies: list[bytes], size: int) -> None:
    stream = b"".join(packet(DATA, n, body) for n, body in enumerate(bodies))
    packets, begun, ended = Packets(), [], []
    for at in range(0, len(stream), size):
        fed = packets.feed(stream[at : at + size])
        begun += fed.begun
        ended += fed.ended
    assert begun == ended == list(range(len(bodies)))


@given(st.integers(0, len(VERSION)))
def test_half_an_answer_is_none(size: int) -> None:
    tally = Tally()
    tally.ask(INIT, 10.0)
    tally.answer(VERSION[:size], 11.0)
    assert tally.silence(20.0) == (0.0 if size == len(VERSION) else 10.0)
    assert tally.greeted == (size == len(VERSION))


def test_an_answer_that_comes_in_drops_is_not_heard_with_each_of_them() -> None:
    tally = Tally()
    tally.ask(packet(READ, 7), 10.0)
    answer = packet(DATA, 7, bytes(100))
    for second, byte in enumerate(answer[:-1]):
        tally.answer(bytes((byte,)), 10.0 + second)
    assert tally.silence(200.0) == 190.0


def test_of_two_requests_the_one_that_is_left_is_waited_for() -> None:
    tally = Tally()
    tally.ask(packet(READ, 7) + packet(READ, 8), 10.0)
    tally.answer(packet(DATA, 8, b"found"), 20.0)
    assert tally.silence(25.0) == 5.0
    tally.pause(24.0)  # as what has come could not be passed on
    assert tally.silence(25.0) == 1.0
    tally.answer(packet(STATUS, 7), 26.0)
    assert tally.silence(99.0) == 0.0


@pytest.mark.parametrize("answer", [
    packet(STATUS, 9), packet(STATUS, 7) * 2, VERSION, packet(STATUS, 9)[:9] + b"x",
    (2).to_bytes(4, "big") + bytes(5),
])  # fmt: skip
def test_what_nobody_has_asked_is_no_answer(answer: bytes) -> None:
    tally = Tally()
    tally.ask(packet(READ, 7), 10.0)
    with pytest.raises(ProtocolError):
        tally.answer(answer, 11.0)
