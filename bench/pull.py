"""Taking a host's files from a server, against the published way: sshfs as root, a chroot, borg.

20,000 small files (180 MB, six owners) and 1 GiB in large ones, on two booted Debian 13 machines. The
script of bench/sshfs.py, and `capkeep run` on the server, take turns; each number is the median time of
the script divided by that of capkeep, so more is better. `a_first`, `a_unchanged`: small files with restic,
both machines on one loopback; `a_borg_…`: with borg; `b_…`: with restic, by way of the target's
sftp-server; `…_2ms`: with 2 ms for the way there and back; `a_large`: the first pull of the large ones.
`workers_2`, `workers_4`: eight targets, 2,500 small files each, 2 ms away, by one worker divided by so
many. `rtt_ms`, `rtt_2ms_ms`: what the way took, as measured. An argument is the number of rounds.
"""

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Final

from bench import sshfs
from bench.host import milliseconds, result, say
from tests.lab import pulled, trees
from tests.lab.machine import Machine
from tests.lab.network import ADDRESSES, Link
from tests.lab.pulled import Pair, Pull

ROUNDS: Final = 3
SUITE: Final = "trixie"
SECONDS: Final = 1200  # for one pull
ONE_WAY: Final = 0.0009  # seconds; the process that carries the frames adds the rest of 1 ms
SMALL: Final = (Pull("small", "small", "restic", ("/srv/small",)),
                Pull("borg", "borg", "borg", ("/srv/small",)),
                Pull("sftp", "sftp", "restic", ("/srv/small",), "sftp"))  # fmt: skip
LARGE: Final = (Pull("large", "large", "restic", ("/srv/large",)),)
EIGHT: Final = tuple(Pull(f"part{n}", "eight", "restic", ("/srv/part",)) for n in range(8))
WORKERS: Final = (1, 2, 4)
SIDES: Final = {"a": "small", "a_borg": "borg", "b": "sftp"}  # whose time, by what it is called
FILL: Final = """
import os, random
chance = random.Random(4711)
owners = (0, 1, 33, 1000, 1001, 70000)
modes = (0o644, 0o600, 0o640, 0o400, 0o755, 0o000)
for n in range(22_500):
    folder = f"/srv/{'small' if n < 20_000 else 'part'}/{n // 100:03}"
    os.makedirs(folder, exist_ok=True)
    path = f"{folder}/file-{n}"
    with open(path, "wb") as file:
        file.write(chance.randbytes(chance.choice((1000, 4000, 8000, 18000))))
    os.chown(path, owners[n // 7 % 6], owners[n // 7 % 6])
    os.chmod(path, modes[n % 6])
os.mkdir("/srv/large")
for n in range(8):
    with open(f"/srv/large/{n}", "wb") as file:
        file.writelines(chance.randbytes(1 << 24) for _ in range(8))
"""
ECHO: Final = """
import socket
listener = socket.create_server(("0.0.0.0", 7007))
while True:
    with listener.accept()[0] as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := sock.recv(4096):
            sock.sendall(data)
"""
ASK: Final = """
import socket, statistics, sys, time
taken = []
with socket.create_connection((sys.argv[1], 7007)) as sock:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(500):
        start = time.perf_counter()
        sock.sendall(b"x" * 200)
        sock.recv(4096)
        taken.append(time.perf_counter() - start)
print(statistics.median(taken) * 1000)
"""
# What the first pull must not find: repositories' contents, and what rooms remember of them.
EMPTY: Final = """
for place in "$@"; do [ ! -d "$place" ] || find "$place" -mindepth 1 -delete; done
"""

Times = dict[str, list[float]]


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    numbers: dict[str, float] = {}
    with _joined(0.0) as hosts:
        numbers["rtt_ms"] = _round_trip(hosts)
        small = _measure(hosts, SMALL, rounds)
        for key, side in SIDES.items():
            numbers |= _ratios(small, key, side, "")
        large = _measure(hosts, LARGE, rounds)
        numbers["a_large"] = _ratios(large, "a", "large", "")["a_first"]
    with _joined(ONE_WAY) as hosts:
        numbers["rtt_2ms_ms"] = _round_trip(hosts)
        far = _measure(hosts, SMALL, rounds)
        for key, side in SIDES.items():
            numbers |= _ratios(far, key, side, "_2ms")
        numbers |= _workers(hosts, rounds)
    result(**numbers, rounds=rounds)


@contextlib.contextmanager
def _joined(seconds: float) -> Iterator[Pair]:
    """Two machines with files on one; without a delay they share one loopback."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Machine(SUITE, hostname="server", packages=trees.PULLING))
        near = None if seconds else server
        if near:  # there is one port 22
            server.ok("systemctl", "disable", "--now", "-q", "ssh.service")
        target = stack.enter_context(
            Machine(SUITE, hostname="web", packages=trees.PULLING, network=near)
        )
        link = Link(server, target, seconds=seconds)
        if near:
            server.ok("ip", "address", "add", f"{ADDRESSES[1]}/32", "dev", "lo")
        else:
            stack.enter_context(link)
        target.ok("python3", "-c", FILL, seconds=SECONDS)
        hosts = Pair(server, target, link)
        pulled.set_up(hosts, (*SMALL, *LARGE, *EIGHT))
        target.write("/root/enrol", server.ok("capkeep", "enroll", "sftp", "--print"))
        target.ok("sh", "/root/enrol", seconds=60)
        sshfs.prepare(server, target)
        yield hosts


def _round_trip(hosts: Pair) -> float:
    """Milliseconds there and back, of a few bytes."""
    hosts.target.write("/run/echo.py", ECHO)
    hosts.target.ok("systemd-run", "-q", "--unit=echo", "python3", "/run/echo.py")
    hosts.server.wait(lambda: not hosts.server.run("python3", "-c", ASK, ADDRESSES[1]).code)
    taken = float(hosts.server.ok("python3", "-c", ASK, ADDRESSES[1]))
    say(f"there and back: {taken:.3f} ms")
    return taken


def _measure(hosts: Pair, pulls: tuple[Pull, ...], rounds: int) -> tuple[Times, Times]:
    """Seconds of first and unchanged pulls, by who pulled: the script, or a pull's name."""
    sides: dict[str, Callable[[], None]] = {
        "script": lambda: sshfs.pull(hosts.server, pulls[0].include[0], SECONDS)
    }
    for pull in pulls:
        sides[pull.target] = lambda job=pull.full_job: _run(hosts, job)  # type: ignore[misc]
    first: Times = {name: [] for name in sides}
    unchanged: Times = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides.items())[:: -1 if number % 2 else 1]
        _afresh(hosts, pulls)
        for times in (first, unchanged):
            for name, action in order:
                hosts.server.ok("sync")
                times[name].append(milliseconds(action) / 1000)
        last = {name: (round(first[name][-1], 2), round(unchanged[name][-1], 2)) for name in sides}
        say(f"round {number + 1}: first and unchanged, seconds: {last}")
    return first, unchanged


def _workers(hosts: Pair, rounds: int) -> dict[str, float]:
    """How many times as long one worker takes as several do, for first pulls of eight targets."""
    times: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for number in range(rounds):
        for workers in WORKERS[:: -1 if number % 2 else 1]:
            text = pulled.on_server(hosts, (*SMALL, *LARGE, *EIGHT))
            text = text.replace("[pull]\n", f"[pull]\nparallel = {workers}\n")
            hosts.server.write("/etc/capkeep/capkeep.toml", text)
            hosts.server.ok("capkeep", "apply", seconds=120)
            _afresh(hosts, EIGHT)
            hosts.server.ok("sync")
            times[workers].append(milliseconds(lambda: _run(hosts, "eight")) / 1000)
        say(f"round {number + 1}: eight targets, seconds by workers: {times}")
    median = {workers: statistics.median(taken) for workers, taken in times.items()}
    return {f"workers_{n}": median[1] / median[n] for n in WORKERS[1:]}


def _run(hosts: Pair, job: str) -> None:
    hosts.server.ok("capkeep", "run", job, seconds=SECONDS)


def _afresh(hosts: Pair, pulls: tuple[Pull, ...]) -> None:
    """Empty repositories and caches, for everybody."""
    sshfs.empty(hosts.server)
    for pull in pulls:
        hosts.server.ok("sh", "-c", EMPTY, "sh", f"/srv/{pull.repository.replace('.', '/')}")
        hosts.server.ok("capkeep", "init", pull.repository, seconds=120)
    for machine in (hosts.server, hosts.target):  # what is in each room's own
        machine.ok("find", "/var/cache/capkeep", "-mindepth", "2", "-delete")


def _ratios(times: tuple[Times, Times], key: str, side: str, suffix: str) -> dict[str, float]:
    """How many times as long the script took."""
    found = {}
    for what, taken in zip(("first", "unchanged"), times, strict=True):
        median = {name: statistics.median(taken[name]) for name in ("script", side)}
        say(f"{key}_{what}{suffix}: {median['script']:.2f} s / {median[side]:.2f} s")
        found[f"{key}_{what}{suffix}"] = median["script"] / median[side]
    return found


if __name__ == "__main__":
    main()
