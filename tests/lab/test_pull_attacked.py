"""A hostile target and a hostile server: neither gets more of the other than the one pull.

Of a server's stolen key everything is tried with a key beside it that nothing is said of: what does not
succeed with that one proves nothing.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.lab import pulled, stolen
from tests.lab.machine import Machine
from tests.lab.pulled import INCLUDE, Pair

pytestmark = pytest.mark.timeout(300)
HOME: Final = "/var/lib/capkeep/answerer"
KEYS: Final = f"{HOME}/.ssh/authorized_keys"
MOST_MEMORY: Final = 200_000  # kB of any one process of the server's: a flood is many times that
# What is printed for people must have none of these.
CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
OWN_STYLE: Final = re.compile("\x1b\\[[0-9;]*[mKAJ]|\r")  # colours, where it is a terminal
# The most memory that each process of capkeep's took meanwhile.
MEMORY: Final = """
import os, pathlib, sys, time
most = {}
while not os.path.exists("/run/enough"):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = dict(line.split(":\\t", 1) for line in pathlib.Path("/proc", pid, "status").read_text().splitlines())
            if int(status["Uid"].split()[0]):
                name = pid + " " + pathlib.Path("/proc", pid, "cmdline").read_text()[-40:]
                most[name] = max(most.get(name, 0), int(status["VmHWM"].split()[0]))
        except (OSError, KeyError, ValueError):
            pass
    time.sleep(0.05)
print(max(most.values(), default=0))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Pair]:
    """Set up, and pulled once; and a key of the same login's that may do anything."""
    with pulled.pair() as made:
        pulled.set_up(made)
        assert made.pull("hosts").code == 0
        stolen.prepare(made.server, made.target, HOME)
        yield made


# -- a hostile server


@pytest.mark.parametrize("name", stolen.BY_NAME)
def test_a_stolen_key_does_nothing_else(hosts: Pair, name: str) -> None:
    attempt = stolen.BY_NAME[name]
    assert stolen.succeeds(*hosts[:2], attempt, stolen.CONTROL), "tried in a way that never works"
    assert not stolen.succeeds(*hosts[:2], attempt, pulled.identity(hosts, "web1"))


def test_the_login_owns_nothing_and_writes_nowhere(hosts: Pair) -> None:
    found = hosts.target.ok("find", "/", "-xdev", "-user", pulled.LOGIN)
    assert found == ""
    assert hosts.target.run("touch", f"{HOME}/x", user=pulled.LOGIN).code != 0
    assert hosts.target.run("capkeep", "run", user=pulled.LOGIN).code == 4


BACKUP: Final[dict[str, object]] = {"action": "backup", "options": {}, "password": "x"}
SUMS: Final[dict[str, object]] = {"nonce": "0123456789abcdef", "before": 1 << 40}


@pytest.mark.parametrize(
    "request_",
    [
        {"action": "restore", "options": {"to": "/srv/data"}},
        {"action": "keys", "options": {}},
        {"action": "stream", "options": {"dump": "x"}},
        BACKUP | {"options": {"include": ["/root"]}},
        BACKUP | {"options": {"exclude": []}},
        BACKUP | {"program": "/bin/sh"},
        BACKUP | {"environment": {"RESTIC_PASSWORD_COMMAND": "touch /tmp/by-command"}},
        BACKUP | {"host": "--files-from=/etc/shadow"},
        BACKUP | {"tags": ["x\n--exclude=/"]},
        BACKUP | {"repository": "/srv/elsewhere"},
        {"action": "sums", "options": SUMS | {"paths": ["/root/.profile"]}, "password": "x"},
        {"action": "sums", "options": SUMS | {"paths": ["/srv/data/../../root/.profile"]}, "password": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_server_asks_for_nothing_else(hosts: Pair, request_: dict[str, object]) -> None:
    """With frames of its own: neither other work, nor other paths, nor words for the engine."""
    said = pulled.ask(hosts, "web1", request_)
    assert '"failure":"refused"' in said, said
    assert '"live"' not in said
    assert hosts.target.run("test", "-e", "/tmp/by-command").code == 1


def test_a_server_that_may_ask_is_answered(hosts: Pair) -> None:
    """In the same way; so the refusals before mean something. The command that ssh names is nobody's."""
    asked: dict[str, object] = {
        "action": "sums",
        "options": SUMS | {"paths": ["/srv/data/private"]},
    }
    said = pulled.ask(hosts, "web1", asked | {"password": "x"}, "by-web2 /run/capkeep/other.sock")
    assert '"path":"/srv/data/private"' in said, said


# -- a hostile target


# Its engine may send nobody a signal; what it starts ends with who started it.
ENGINE: Final = """\
#!/usr/bin/python3
import ctypes, os, sys, time
real = "/usr/bin/restic.real"
words = sys.argv[1:]
if "backup" in words:
    kept = [word for word in words[:words.index("backup")] if word != "--json"]
    if not os.fork():
        if not os.fork():
            ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG
            os.dup2(2, 1)
            os.execv(real, [real, *kept, "forget", "latest"])
        time.sleep(6)  # it would try again for a minute
        os._exit(0)
    os.wait()
os.execv(real, [real, *words])
"""


def test_a_hostile_engine_removes_nothing_of_its_own(hosts: Pair) -> None:
    before = hosts.snapshots("pulled.web1")
    machine = hosts.target
    machine.ok("mv", "/usr/bin/restic", "/usr/bin/restic.real")
    machine.write("/usr/bin/restic", ENGINE, 0o755)
    try:
        done = hosts.pull("hosts.web1")
    finally:
        machine.ok("mv", "/usr/bin/restic.real", "/usr/bin/restic")
    assert "blob not removed" in done.out  # it has tried
    after = hosts.snapshots("pulled.web1")
    assert [s for s in before if s not in after] == []
    remove_by_hand(hosts.server, str(before[0]["id"]))


def remove_by_hand(server: Machine, snapshot: str) -> None:
    """The same is no trouble for whoever has the directory."""
    server.ok("cp", "-a", "/srv/pulled/web1", "/srv/copy")
    forget = (
        "restic",
        "-q",
        "-r",
        "/srv/copy",
        "-p",
        "/etc/capkeep/secrets/pulled",
        "forget",
        snapshot,
    )
    server.ok(*forget)
    assert len(server.ok("ls", "/srv/copy/snapshots").split()) < len(
        server.ok("ls", "/srv/pulled/web1/snapshots").split()
    )


@pytest.fixture(scope="module")
def attacked(hosts: Pair) -> Iterator[Pair]:
    """Where a hostile program can stand in the answerer's place.

    After all of it what was there is there, of this target and of the other, no process of the server's
    has taken much memory, and the next pull is complete.
    """
    server, target = hosts.server, hosts.target
    target.write(
        "/srv/hostile_target.py", Path(__file__).with_name("hostile_target.py").read_text()
    )
    keys, before = target.read(KEYS), hosts.snapshots("pulled.web1")
    server.ok("systemd-run", "-q", "--unit=memory", "-p", "StandardOutput=truncate:/run/most",
              "python3", "-c", MEMORY)  # fmt: skip
    yield hosts
    server.write("/run/enough", "")
    server.wait(lambda: server.run("systemctl", "is-active", "-q", "memory").code)
    assert 0 < int(server.read("/run/most")) < MOST_MEMORY
    assert hosts.snapshots("pulled.web1") == before
    assert len(hosts.snapshots("pulled.web2")) == 1
    assert server.run("test", "-e", "/srv/owned").code == 1
    target.write(KEYS, keys)
    done = hosts.pull("hosts.web1")
    assert done.code == 0, done


@pytest.fixture
def hostile(attacked: Pair) -> Iterator[Pair]:
    """It leaves nothing that runs."""
    yield attacked
    attacked.await_rest()


def become(hosts: Pair, wish: str) -> None:
    """Have the target's login do that instead."""
    key = hosts.server.read(f"{pulled.identity(hosts, 'web1')}.pub").strip()
    command = f"exec python3 /srv/hostile_target.py {wish} {' '.join(INCLUDE)}"
    hosts.target.write(KEYS, f'restrict,command="{command}" {key}\n')


@pytest.mark.parametrize(
    "wish",
    [
        "say_good_without_backup", "say_good_in_the_counts_alone", "name_an_option_as_snapshot", "open_many", "send_without_credit",
        "say_a_huge_line", "announce_a_huge_frame", "flood_with_events", "flood_with_pings",
        "give_credit_for_ever", "greet_with_a_banner", "show_a_false_proof", "show_files_of_others",
    ],
)  # fmt: skip
def test_a_hostile_target_is_never_complete(hostile: Pair, wish: str) -> None:
    become(hostile, wish)
    done = hostile.pull("hosts.web1")
    assert done.code not in (0, 3), done
    assert hostile.last("hosts.web1")["outcome"] == "failed"


def test_names_and_words_stay_words(hostile: Pair) -> None:
    """Nothing that a target says moves a cursor, changes a title or begins a line of its own."""
    become(hostile, "escape_from_the_terminal")
    server = hostile.server
    said = [server.run("capkeep", "run", "hosts.web1")]
    said += [server.run("capkeep", *words) for words in (("status",), ("history",), ("log",))]
    said.append(server.run("script", "-qec", "capkeep log", "/dev/null"))  # on a terminal
    assert "owned" in said[0].out + said[0].err
    for result in said:
        text = (
            OWN_STYLE.sub("", result.out + result.err)
            .encode(errors="surrogateescape")
            .decode(errors="replace")
        )
        assert not CONTROLS.search(text.replace("\r\n", "\n")), repr(CONTROLS.search(text))
        assert not re.search("^2026 forged line", text, re.MULTILINE)
    entries = server.ok("journalctl", "-o", "json", "--no-pager", "-u", "capkeep*")
    for line in entries.splitlines():
        message = json.loads(line)["MESSAGE"]
        assert isinstance(message, str), bytes(message)  # what is not plain is an array
