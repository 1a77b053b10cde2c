"""What a job may take: read from the configuration, planned, and kept."""

from pathlib import Path

import pytest

from capkeep.config.model import ResourcesConfig
from capkeep.errors import Failure
from capkeep.host.hardening import limits
from capkeep.plan.exported import never_exported, notes, reminder
from capkeep.plan.model import Grant, Limits, Places, Repository, Resources
from capkeep.report.key_sheet import Sheet, as_text
from capkeep.rooms.protocol import ProtocolError
from capkeep.rooms.rest.pace import PIECE, SAVED_SECONDS, Pace, PacedUpload, Rates
from capkeep.rooms.vault import _rates
from capkeep.run.attempts import LONGEST_WAIT, Retries
from capkeep.values import ValueMistake, format_rate, parse_cpu, parse_rate
from tests.unit.test_config_load import GOOD, Etc

ALL = """\
nice = 10
io-class = "best-effort"
io-priority = 7
cpu-limit = "150%"
memory-limit = "1GiB"
upload-limit = "2MiB/s"
download-limit = "512KiB"
lock-wait = "10m"
retries = 3
retry-wait = "1m"
"""


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    tmp_path.chmod(0o755)
    return Etc(tmp_path.resolve())


def test_a_job_says_what_it_may_take(etc: Etc) -> None:
    etc.good(job=ALL)
    (job,) = etc.load().jobs
    assert job.resources == ResourcesConfig(
        nice=10, io_class="best-effort", io_priority=7, cpu_percent=150, memory_bytes=1 << 30,
        upload_bytes=2 << 20, download_bytes=512 << 10, lock_wait_seconds=600, retries=3,
        retry_wait_seconds=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    "line, problem, hint",
    [
        ("nice = -1", "at least 0", "0 or more"),
        ("nice = 20", "at most 19", "19 or less"),
        ('io-class = "realtime"', "best-effort", ""),
        ("io-priority = 8", "at most 7", "7 or less"),
        ('cpu-limit = "half"', "not a share of processors", "50%"),
        ('cpu-limit = "0%"', "not a share of processors", "50%"),
        ("cpu-limit = 50", "in quotes", "150%"),
        ('memory-limit = "64MiB"', "so little memory", "128MiB"),
        ('upload-limit = "10KiB/s"', "so slow", "64KiB/s"),
        ('download-limit = "1Mbit"', "not a rate", "2MiB/s"),
        ('lock-wait = "long"', "not a duration", "36h"),
        ("retries = 21", "at most 20", "20 or less"),
        ('retry-wait = "0s"', "at once", "30s"),
    ],
)
def test_mistakes(etc: Etc, line: str, problem: str, hint: str) -> None:
    etc.good(job=line)
    mistake = etc.mistake()
    assert mistake.line == 10
    assert mistake.key == f"jobs.j.{line.partition(' ')[0]}"
    assert problem in mistake.problem
    assert hint in mistake.hint


def test_a_priority_without_its_class_is_remarked(etc: Etc) -> None:
    etc.good(job="io-priority = 7")
    assert any("best-effort" in r.problem for r in etc.load().remarks)


def test_a_containers_secret_is_a_credential(etc: Etc, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace('{ file = "@/secret" }', '{ credential = "capkeep-test-given" }')
    etc.main(text)
    assert "/run/secrets" in etc.mistake().problem
    etc.file("given/capkeep-test-given", "a password\n", 0o600)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(etc.root / "given"))
    assert etc.load().repositories[0].password.credential == "capkeep-test-given"


def test_a_rate_is_a_size_a_second() -> None:
    assert parse_rate("2MiB/s") == parse_rate("2MiB") == 2 << 20
    assert format_rate(2 << 20) == "2MiB/s"
    assert parse_cpu("150 %") == 150
    for text in ("", "%", "1.5%", "1000000000%"):
        with pytest.raises(ValueMistake):
            parse_cpu(text)


def test_units_say_it_in_systemds_words() -> None:
    grant = Grant("u", 1, 1)
    plain = set(limits(grant))
    most = Limits(nice=5, io_class="idle", cpu_percent=50, all_memory_bytes=1 << 30)
    assert set(limits(grant._replace(limits=most))) - plain == {
        "Nice=5", "IOSchedulingClass=idle", "CPUQuota=50%", "MemoryMax=1073741824",
        "MemorySwapMax=0",
    }  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_pace_is_kept_whatever_the_pieces() -> None:
    for piece in (1, 1000, 300_000):
        clock = Clock()
        pace = Pace(100_000, now=lambda clock=clock: clock.now, sleep=clock.sleep)  # type: ignore[misc]
        for _ in range(1_000_000 // piece):
            pace.passed(piece)
        assert clock.now - 100 == pytest.approx(10, abs=SAVED_SECONDS + 3)


def test_what_was_not_used_is_no_leave_for_a_burst() -> None:
    clock = Clock()
    pace = Pace(1000, now=lambda: clock.now, sleep=clock.sleep)
    pace.passed(1)
    clock.now += 3600
    before = clock.now
    pace.passed(5000)
    assert clock.now - before == pytest.approx(5, abs=SAVED_SECONDS + 0.01)


class Kept:
    """Takes what it is given."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.pour = None

    def write(self, data: memoryview) -> None:
        self.pieces.append(bytes(data))

    def commit(self) -> None:
        """Nothing to do."""

    def abort(self) -> None:
        """Nothing to do."""


def test_large_pieces_pass_in_small_ones() -> None:
    kept = Kept()
    PacedUpload(kept, Pace(0)).write(memoryview(b"x" * (3 * PIECE + 1)))
    assert [len(p) for p in kept.pieces] == [PIECE, PIECE, PIECE, 1]


def test_a_vault_is_told_rates_and_nothing_else() -> None:
    assert _rates({"handover": True}) == Rates()
    assert _rates({"handover": True, "upload": 5}) == Rates(5, 0)
    for more in (
        {"upload": -1},
        {"upload": True},
        {"upload": "5"},
        {"other": 1},
        {"upload": 1 << 63},
    ):
        with pytest.raises(ProtocolError):
            _rates({"handover": True, **more})


def test_pauses_grow_and_end() -> None:
    retries = Retries(Resources(retries=12, retry_wait_seconds=30), 1e9)
    waits = []
    while (wait := retries.next_pause(Failure.UNREACHABLE)) is not None:
        waits.append(wait)
        retries.tries += 1
    assert waits[:4] == [30, 60, 120, 240]
    assert waits[-1] == LONGEST_WAIT
    assert len(waits) == 12


@pytest.mark.parametrize("failure", [None, *(f for f in Failure if f is not Failure.UNREACHABLE)])
def test_nothing_but_the_network_is_tried_again(failure: Failure | None) -> None:
    assert Retries(Resources(retries=5), 1e9).next_pause(failure) is None


def test_a_step_out_of_time_is_not_tried_again() -> None:
    assert Retries(Resources(retries=5, retry_wait_seconds=30), 20).next_pause(
        Failure.UNREACHABLE
    ) is None  # fmt: skip


def test_reminded_is_of_what_was_neither_exported_nor_declared(tmp_path: Path) -> None:
    places = Places(*(str(tmp_path / n) for n in ("etc", "state", "cache", "log", "run")))
    assert never_exported(places) == []
    (tmp_path / "state").mkdir()
    Path(places.plan).write_text(
        '{"repositories": [{"name": "a"}, {"name": "b", "key_exported": true}, {"name": "c"}]}'
    )
    assert never_exported(places) == ["a", "c"]
    Path(notes(places)).mkdir()
    Path(notes(places), "a").touch()
    assert never_exported(places) == ["c"]
    assert "c" in reminder(["c"])[0]
    Path(places.plan).write_text("[]")
    assert never_exported(places) == []


def test_a_sheet_for_an_sftp_place_says_how_to_log_in() -> None:
    repository = Repository(
        "nas", "restic", "sftp:me@nas:/repo", "/usr/bin/restic",
        options=(("known-hosts", "/etc/capkeep/known_hosts"), ("port", "2222"), ("rclone", "/x")),
    )  # fmt: skip
    sheet = Sheet(repository, "restic 0.18.0", "abcd", "host", "word", needed=("identity",))
    text = as_text(sheet)
    assert "-o 'sftp.args=-i identity -o UserKnownHostsFile=known_hosts -p 2222'" in text
    assert "Not in here, and needed to get there: identity" in text
    assert "/x" not in text
    given = as_text(sheet._replace(credentials=(("identity", "-----BEGIN\nabc\n-----END\n"),)))
    assert "identity:\n-----BEGIN\nabc\n-----END\n" in given
