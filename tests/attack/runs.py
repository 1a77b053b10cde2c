"""Let the hostile program loose: without a sandbox, as people run engines today, and in each room."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from capkeep.config.load import load
from capkeep.host import apply
from capkeep.host.bubblewrap import render
from capkeep.host.direct import converse
from capkeep.host.start import limit
from capkeep.kernel.process import spawn
from capkeep.plan.compile import HostFacts, compile_plan
from capkeep.plan.model import Mode, Places, Plan, Room, RoomKind
from tests.attack.attempts import ATTEMPTS, BY_NAME, Aftermath
from tests.attack.user_mode import UserMode
from tests.attack.world import LIMITS, PYTHON, SUBORDINATE, UIDS, Seen, Watcher, World, tree_digest

# Each needs a run of its own; a vault that is asked for too much ends the run it is in.
ALONE = ("setuid-program", "capable-program", "fill-disk", "silence-the-vault")
DISK = 24 << 20  # bytes of the disk that is filled; the room must leave half of it free
CONTROLS = ("without", "root", "today")
ROOMS = ("reader", "keeper", "viewer", "restorer", "vault", "runner", "notifier", "dumper", "hook",
         "prover", "copier", "giver", "puller", "link", "user")  # fmt: skip
RUN_AS = {
    "without": "reader",
    "giver": "viewer",
    "link": "puller",
}  # columns that have no user of their own
# Of a target that nobody asks: any public key.
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUu+lVRxuM5N190YfYm7E1kv27Bhh0p/aapXxNRNF7j"
LENT = {"dumper": "games", "hook": "daemon"}  # whom the configuration names; ours have no names


class Outcome(NamedTuple):
    """What became of one attempt."""

    inside: bool  # it says that it succeeded
    outside: bool  # it was seen to
    said: str

    @property
    def got(self) -> bool:
        """Either is enough."""
        return self.inside or self.outside


Results = dict[str, Outcome]


class NaiveServer(threading.Thread):
    """A repository server that checks nothing and serves one after the other."""

    def __init__(self, root: str) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=300)
        self.port = self.listener.getsockname()[1]

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                with sock, contextlib.suppress(OSError, ValueError, IndexError):
                    sock.settimeout(30)
                    self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        data = sock.recv(1 << 16)
        while b"\r\n\r\n" not in data:
            more = sock.recv(1 << 16)
            if not more:
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
        size = next(
            (
                int(h.split(b":")[1])
                for h in head.split(b"\r\n")
                if h.lower().startswith(b"content-length")
            ),
            0,
        )
        while len(body) < size:
            body += sock.recv(1 << 16) or b""
        place = f"{self.root}/{unquote(path)}"
        if method == "DELETE":
            os.unlink(place)
        elif method in ("POST", "PUT"):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            Path(place).write_bytes(body)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Stage:
    """The world, a real repository in it, and a plan compiled from a real configuration."""

    def __init__(self, world: World, restic: str) -> None:
        self.world = world
        self.restic = restic
        self._user: UserMode | None = None
        self.base = world.base
        self.repository = f"{self.base}/repositories/repo"
        self._make_repository()
        self.plan = self._plan()
        for change in apply.changes(self.plan):
            change.make()
        apply.renew_canary(self.plan)
        self._own_repository()

    def _make_repository(self) -> None:
        os.makedirs(self.repository)
        os.chmod(f"{self.base}/repositories", 0o755)
        env = {"RESTIC_PASSWORD_FILE": f"{self.base}/etc/secrets/repo", "PATH": "/usr/bin:/bin",
               "RESTIC_REPOSITORY": self.repository}  # fmt: skip
        for words in (["init"], ["backup", "/etc/hostname", "/etc/passwd"]):
            subprocess.run([self.restic, "--no-cache", *words], env=env, check=True,
                           stdout=subprocess.DEVNULL, timeout=60)  # fmt: skip
        first = {kind: sorted(p for p in Path(self.repository, kind).rglob("*") if p.is_file())[0]
                 for kind in ("snapshots", "data", "keys")}  # fmt: skip
        self.world.constant |= {"snapshot_id": first["snapshots"].name, "key_id": first["keys"].name,
                                "pack_id": first["data"].name, "pack": str(first["data"])}  # fmt: skip

    def _own_repository(self) -> None:
        for folder, _, files in os.walk(self.repository):
            for path in (folder, *(f"{folder}/{f}" for f in files)):
                os.chown(path, UIDS["vault"], UIDS["vault"])
        os.chmod(self.repository, 0o700)
        self._kept = f"{self.base}/root-only/repository"
        shutil.copytree(self.repository, self._kept)

    def restore_repository(self) -> None:
        """As it was before an attack that succeeded."""
        shutil.rmtree(self.repository)
        shutil.copytree(self._kept, self.repository)
        for folder, _, files in os.walk(self.repository):
            for path in (folder, *(f"{folder}/{f}" for f in files)):
                os.chown(path, UIDS["vault"], UIDS["vault"])

    def _configuration(self) -> str:
        return f"""
[repositories.repo]
engine = "restic"
location = "{self.repository}"
password = {{ file = "{self.base}/etc/secrets/repo" }}

[engines.restic]
program = "{self.restic}"

[jobs.everything]
repositories = ["repo"]
include = ["{self.base}/source", "/etc"]

[jobs.everything.drill]

[notify.webhook]
url = "http://localhost:1/"

[host]
members-restore = true

[limits]
memory = "{LIMITS["memory"] >> 20}MiB"
processes = {LIMITS["processes"]}
free-space = "{DISK >> 21}MiB"
"""

    def _plan(self) -> Plan:
        config = f"{self.base}/etc"
        Path(config, "capkeep.toml").write_text(self._with_lent(self._configuration()))
        names = {"capkeep": "runner"} | {f"capkeep-{n}": n for n in UIDS}
        names |= {name: kind for kind, name in LENT.items()}
        facts = HostFacts(
            mode=Mode.SYSTEM, places=self.places, group=UIDS["runner"], interpreter=PYTHON,
            package=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(apply.__file__)))),
            hostname="attacked", users={n: (UIDS[k], UIDS[k]) for n, k in names.items()},
            subordinate=(SUBORDINATE, 1 << 16),
        )  # fmt: skip
        return compile_plan(load(config), facts)

    def _with_lent(self, text: str) -> str:
        """The configuration with a dump and a hook, whose rooms are lent users, and with copies."""
        out = f"{self.base}/hook-out"
        os.mkdir(out, 0o700)
        os.chown(out, UIDS["hook"], UIDS["hook"])
        job = "[jobs.everything]\n"
        return (
            text.replace(job, f'{job}dumps = ["own"]\nbefore = ["own"]\n')
            + f"""
[dumps.own]
kind = "command"
user = "{LENT["dumper"]}"
command = ["/usr/bin/true"]

[hooks.own]
user = "{LENT["hook"]}"
command = ["/usr/bin/true"]
write = ["{out}"]

[repositories.second]
engine = "restic"
location = "{self.base}/repositories/second"
password = {{ file = "{self.base}/etc/secrets/repo" }}

[jobs.everything.copies]
into = ["second"]

[pull]
identity = {{ file = "{self.base}/etc/secrets/repo" }}

[targets.away]
host-key = "{HOST_KEY}"

[targets.bare]
way = "sftp"
host-key = "{HOST_KEY}"

[repositories.pulled]
engine = "restic"
location = "{self.base}/repositories/{{target}}"
password = {{ file = "{self.base}/etc/secrets/repo" }}

[jobs.pull]
targets = ["away", "bare"]
repositories = ["pulled"]
include = ["/etc"]
"""
        )

    @property
    def places(self) -> Places:
        """Everything below the world's own directory."""
        base = self.base
        return Places(f"{base}/etc", f"{base}/state", f"{base}/cache", f"{base}/log", f"{base}/run")

    def room(self, kind: RoomKind) -> Room:
        """The one room of that kind."""
        return next(r for r in self.plan.rooms if r.kind is kind)

    # -- runs

    def run(self, column: str, names: tuple[str, ...]) -> Results:
        """The attempts of those names, in one column of the table."""
        together = tuple(n for n in names if n not in ALONE)
        results: Results = {}
        for part in (together, *((n,) for n in names if n in ALONE)):
            if part:
                results |= self._run_part(column, part)
        return results

    def _run_part(self, column: str, names: tuple[str, ...]) -> Results:
        uid = 0 if column == "root" else UIDS[RUN_AS.get(column, column)]
        world = self.world
        targets = world.prepare(uid) | {
            "only": " ".join(names),
            "results": f"r-{secrets.token_hex(4)}",
        }
        world.current_uid = uid
        watcher = self._watcher(column, uid)
        before = tree_digest(self.repository)
        with contextlib.ExitStack() as stack:
            watcher.start()
            ran = self._runner(column)(targets, uid, stack)
            seen = self._seen(watcher.stop(), column, targets)
            said = read_results(f"{ran.out}/{targets['results']}")
            if "fill-disk" in names and ran.disk_filled is not None:
                said["fill-disk"] = (ran.disk_filled, "full" if ran.disk_filled else ran.note)
            results = {}
            for name in names:
                inside, detail = said.get(name, (False, f"(never reported) {ran.note}"))
                aftermath = Aftermath(world, targets, seen, ran.out, detail if inside else "",
                                      ran.vault_dir or self.repository, ran.served_after)  # fmt: skip
                if BY_NAME[name].only_outside:
                    inside = False
                results[name] = Outcome(inside, BY_NAME[name].succeeded(aftermath), detail)
        if tree_digest(self.repository) != before:
            self.restore_repository()
        return results

    def _watcher(self, column: str, uid: int) -> Watcher:
        return Watcher(uid, in_user_namespace=column in ("user", "prover"))

    def _seen(self, seen: Seen, column: str, targets: dict[str, str]) -> Seen:
        """What was seen from outside; for other machines than this to add to."""
        del column, targets
        return seen

    def _runner(self, column: str) -> Callable[[dict[str, str], int, contextlib.ExitStack], "Ran"]:
        if column in CONTROLS:
            return lambda targets, uid, stack: self._without(column, targets, uid, stack)
        if column == "user":
            return self._as_user
        if column in ("vault", "runner", "notifier", "puller", "link"):
            return lambda targets, uid, stack: self._in_place_of(column, targets, uid, stack)
        return lambda targets, uid, stack: self._as_engine(column, targets, uid, stack)

    def _without(
        self, column: str, targets: dict[str, str], uid: int, stack: contextlib.ExitStack
    ) -> "Ran":
        """The same program with no room around it."""
        out = self.world.out(uid)
        copy = f"{self.base}/outs/{secrets.token_hex(4)}/repository"
        shutil.copytree(self.repository, copy)
        server = NaiveServer(copy)
        server.start()
        stack.callback(server.close)
        prober = Prober(server.port)
        prober.start()
        targets |= {
            "out": out,
            "roomed": "no",
            "vault_url": f"rest:http://127.0.0.1:{server.port}/",
        }
        if targets["only"] == "fill-disk":
            small_disk(out, uid, stack)
        program = self.world.program(f"{column}-{secrets.token_hex(4)}", targets)
        argv = self._outside(column, uid, program, out)
        note = subprocess.run(argv, env={"PATH": "/usr/bin:/bin"}, timeout=90, check=False,
                              capture_output=True, text=True).stderr  # fmt: skip
        filled = None if targets["only"] != "fill-disk" else free_bytes(out) < 1 << 20
        return Ran(out, note[-300:], copy, prober.stop(), filled)

    def _outside(self, column: str, uid: int, program: str, out: str) -> list[str]:
        """How that program is started without a room; it may write in `out`."""
        del out
        if column == "root":
            return [program]
        caps = "-all,+dac_read_search"
        ambient = [f"--inh-caps={caps}", f"--ambient-caps={caps}"] if column == "without" else []
        start = [self.world.today, "-I", "-S", program] if column == "today" else [program]
        return ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *ambient,
                "--", *start]  # fmt: skip

    def _as_engine(
        self, column: str, targets: dict[str, str], uid: int, stack: contextlib.ExitStack
    ) -> "Ran":
        """In the engine's place: the real room, asked for its real job."""
        room = self.room(RoomKind(column))
        out = room.grant.writable[0]
        targets |= {"out": out, "roomed": "yes"}
        if targets["only"] == "fill-disk":
            small_disk(out, uid, stack)
        program = self.world.program(f"{column}-{secrets.token_hex(4)}", targets)
        plan = self._with_program(program)
        if column in LENT:
            room = room._replace(grant=room.grant._replace(read=(*room.grant.read, program)))
        requests: dict[str, dict[str, object]] = {
            "reader": {"action": "backup"}, "copier": {"action": "copy"}, "keeper": {"action": "check"}, "dumper": {"action": "dump"},
            "hook": {"action": "run", "options": {"moment": "before", "job": "everything"}},
            "prover": {"action": "drill", "options": {"job": "everything", "snapshot": "latest"}},
            "viewer": {"action": "ls", "options": {"snapshot": "latest"}},
            "giver": {"action": "ls", "options": {"snapshot": "latest", "path": "/etc"}},
            "restorer": {"action": "restore", "options": {"snapshot": "latest", "target": f"{self.base}/restored"}},
        }  # fmt: skip
        if column == "restorer":
            os.makedirs(f"{self.base}/restored", exist_ok=True)
            room = room._replace(
                grant=room.grant._replace(write=(*room.grant.write, f"{self.base}/restored"))
            )
        events: list[dict[str, object]] = []
        result = converse(plan, room, requests[column], events.append)
        note = str({k: v for k, v in result.items() if k in ("failure", "text", "engine_words")})
        filled = None if targets["only"] != "fill-disk" else free_bytes(out) < 1 << 20
        return Ran(out, note[-300:], "", self._vault_serves(), filled)

    def _with_program(self, program: str) -> Plan:
        """The plan with that program in place of the engine, the dump and the hook."""
        plan = self.plan
        return plan._replace(
            repositories=tuple(r._replace(program=program) for r in plan.repositories),
            dumps=tuple(d._replace(command=(program,)) for d in plan.dumps),
            hooks=tuple(h._replace(command=(program,)) for h in plan.hooks),
        )

    def _as_user(self, targets: dict[str, str], uid: int, stack: contextlib.ExitStack) -> "Ran":
        """In the engine's place of a reader that a normal user has for his own files."""
        if self._user is None:
            self._user = UserMode(self.world, self.restic)
        mode = self._user
        targets |= mode.targets | {"out": mode.out, "roomed": "yes"}
        if targets["only"] == "fill-disk":
            small_disk(mode.out, uid, stack)
        note = mode.run(self.world.program(f"user-{secrets.token_hex(4)}", targets))
        filled = None if targets["only"] != "fill-disk" else free_bytes(mode.out) < 1 << 20
        return Ran(mode.out, note[-300:], "", True, filled)

    def _vault_serves(self) -> bool:
        """Whether the repository can still be listed by somebody else."""
        result = converse(
            self.plan, self.room(RoomKind.KEEPER), {"action": "snapshots"}, lambda _: None
        )
        return not result.get("failure")

    def _in_place_of(
        self, column: str, targets: dict[str, str], uid: int, stack: contextlib.ExitStack
    ) -> "Ran":
        """In place of what a room with the network starts (rclone, ssh), or of the runner's own program."""
        room = self.room(RoomKind(column))
        if column == "vault":
            own = next(p for p in room.grant.write if p != self.repository)
            room = room._replace(grant=room.grant._replace(network=True, write=(own,)))
        if column == "notifier":  # it may write nowhere, and must say what it got
            room = room._replace(grant=room.grant._replace(write=(self.world.out(uid),)))
        out = room.grant.write[0]
        targets |= {"out": out, "roomed": "yes"}
        if targets["only"] == "fill-disk":
            small_disk(out, uid, stack)
        program = self.world.program(f"{column}-{secrets.token_hex(4)}", targets)
        room = room._replace(grant=room.grant._replace(read=(*room.grant.read, program)))
        command = render(room, self.plan, "")
        profile = "runner" if column == "runner" else "vault"
        stand_in = STAND_IN.format(package=self.plan.package, profile=profile, write=room.grant.write,
                                   network=room.grant.network)  # fmt: skip
        argv = (
            *command.argv[: command.argv.index(self.plan.interpreter, 1) + 1],
            "-I",
            "-S",
            "-c",
            stand_in,
            program,
        )
        log = os.open(f"{self.base}/outs/{column}.log", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        child = spawn(argv, env=dict(command.env), stdout=log, stderr=log,
                      prepare=lambda: limit(room.grant.limits, processes=True))  # fmt: skip
        try:
            child.wait(90)
        finally:
            child.kill()
            os.close(log)
        filled = None if targets["only"] != "fill-disk" else free_bytes(out) < 1 << 20
        return Ran(out, Path(f"{self.base}/outs/{column}.log").read_text()[-300:], "", True, filled)


STAND_IN = """
import sys; sys.path.append({package!r})
import os, signal
from capkeep.kernel import landlock, seccomp
from capkeep.kernel.process import hide_memory, spawn
hide_memory()
seccomp.install(seccomp.Profile({profile!r}))
landlock.restrict({write!r}, network={network!r})
if {profile!r} == "runner":
    os.execve(sys.argv[1], [sys.argv[1]], {{}})
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)  # rclone may end its own vault; here it should go on
password = "a secret of the room's own"
child = spawn([sys.argv[1]], env={{"PATH": "/usr/bin:/bin"}}, stderr=2)
try:
    child.wait(80)
finally:
    child.kill()
"""


class Ran(NamedTuple):
    """What a run leaves to look at."""

    out: str
    note: str
    vault_dir: str  # "" for the stage's own repository
    served_after: bool
    disk_filled: bool | None


def read_results(path: str) -> dict[str, tuple[bool, str]]:
    """What the hostile program says."""
    try:
        lines = Path(path).read_text().splitlines()
    except FileNotFoundError:
        return {}
    records = [json.loads(line) for line in lines]
    return {r["name"]: (r["got"], r["detail"]) for r in records}


def small_disk(path: str, uid: int, stack: contextlib.ExitStack) -> None:
    """A disk of its own below a writable place, which may be filled."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700,uid={uid},gid={uid}", "attack", path],
                   check=True)  # fmt: skip
    stack.callback(subprocess.run, ["umount", "-l", path], check=True)


def free_bytes(path: str) -> int:
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


class Prober(threading.Thread):
    """Somebody else who wants to be served."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.served = True
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.3):
            self.served = self.served and self._answers()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 3) as sock:
                sock.settimeout(3)
                sock.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n")
                return bool(sock.recv(1))
        except OSError:
            return False

    def stop(self) -> bool:
        self._done.set()
        self.join(10)
        return self.served


@contextlib.contextmanager
def stage(restic: str) -> Iterator[Stage]:
    """A world and everything in it, taken away afterwards."""
    with World() as world:
        yield Stage(world, restic)


def all_names() -> tuple[str, ...]:
    return tuple(a.name for a in ATTEMPTS)
