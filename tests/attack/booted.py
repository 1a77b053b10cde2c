"""The attacks where systemd runs the machine: in rooms that are its units, and in units of others.

Runs as root inside such a machine, which it changes without tidying up: one that is thrown away.
`python -m tests.attack.booted COLUMN…` prints a JSON object of a column's outcomes on each line.
"""

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from capkeep.cli.places import SYSTEM
from capkeep.host import units
from capkeep.plan.load import load_plan
from capkeep.plan.model import Places, RoomKind
from capkeep.rooms.protocol import Channel
from tests.attack.attempts import ATTEMPTS, BOOTED_ATTEMPTS
from tests.attack.runs import Ran, Results, Stage, free_bytes, small_disk
from tests.attack.world import UIDS, Seen, Watcher, World, file_handle

CONTROLS: Final = ("without", "root")
RECIPES: Final = ("setcap", "hardened")
ROOMS: Final = ("reader", "keeper")
# What people write into units today; the second one follows many a guide.
SETCAP: Final = ("ProtectSystem=full",)
HARDENED: Final = (
    "AmbientCapabilities=CAP_DAC_READ_SEARCH", "CapabilityBoundingSet=CAP_DAC_READ_SEARCH",
    "ProtectSystem=strict", "PrivateTmp=yes", "PrivateDevices=yes", "ProtectControlGroups=yes",
    "ProtectKernelModules=yes", "ProtectKernelTunables=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallArchitectures=native", "NoNewPrivileges=yes", "RestrictRealtime=yes",
    "MemoryDenyWriteExecute=yes", "LockPersonality=yes", "ProtectHostname=yes", "RemoveIPC=yes",
    "RestrictSUIDSGID=yes", "ProtectClock=yes", "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
)  # fmt: skip
# Made in a place of the unit's own, which nobody else sees, these are no success of a recipe's.
IN_ITS_OWN = ("create-in-tmp",)
SECRET_UNIT = "attacksecret.service"
GROUP = Path("/sys/fs/cgroup/attack")
COMMANDS = {"reader": ("capkeep", "run", "everything"), "keeper": ("capkeep", "check")}
SOCKETS = {
    "vault": {"reader": "vault-repo-admin", "keeper": "vault-repo-append"},
    "room": {"reader": "keeper-repo", "keeper": "reader-everything-repo"},
    "runner": {"reader": "runner", "keeper": "runner"},
}


def all_names() -> tuple[str, ...]:
    return tuple(a.name for a in (*ATTEMPTS, *BOOTED_ATTEMPTS))


class BootedWatcher(Watcher):
    """Looks at logind as well."""

    token = ""

    def _look(self) -> None:
        super()._look()
        for entry in os.scandir("/run/systemd/inhibit"):
            with suppress(OSError):
                if self.token in Path(entry.path).read_text():
                    self.things.add("inhibitor")


class Booted(Stage):
    """The world, and an installation in it as `capkeep apply` makes it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.base = world.base
        self.repository = f"{self.base}/repositories/repo"
        self.restic = f"{self.base}/programs/engine"  # now and then the hostile program
        self._accepted: dict[str, int] = {}  # by socket, and when a run begins
        self._uid = 0  # of that run
        self._engine(Path("/usr/bin/restic"))
        for name in RECIPES:
            run("useradd", "--system", f"attack-{name}")
        self._install()
        self._learn_users()
        self._make_targets()
        self._own_repository()

    def _install(self) -> None:
        os.makedirs("/etc/capkeep/secrets", mode=0o700)
        Path("/etc/capkeep/capkeep.toml").write_text(self._configuration())
        for command in (("apply",), ("init",), ("run", "everything")):
            run("capkeep", *command)
        self.plan = load_plan(SYSTEM)

    @property
    def places(self) -> Places:
        return self.plan.places

    def _learn_users(self) -> None:
        UIDS.update({k: pwd.getpwnam(f"capkeep-{k}").pw_uid for k in ("reader", "keeper", "vault")})
        UIDS.update({k: pwd.getpwnam(f"attack-{k}").pw_uid for k in RECIPES})
        for name in (*ROOMS, *RECIPES):
            user = pwd.getpwuid(UIDS[name]).pw_name
            run("loginctl", "enable-linger", user)  # its own manager then waits for it

    def _make_targets(self) -> None:
        """What is worth having on a booted machine, at its real places."""
        world, places = self.world, self.places
        first = {kind: sorted(p for p in Path(self.repository, kind).rglob("*") if p.is_file())[0]
                 for kind in ("snapshots", "data", "keys")}  # fmt: skip
        secret, cache = f"{places.secrets}/other", f"{places.cache}/other/secret"
        os.mkdir(os.path.dirname(cache), 0o700)
        for path, name in ((secret, "file"), (cache, "cache")):
            Path(path).write_text(world.secrets[name])
            os.chmod(path, 0o600)
        kind, handle = file_handle(secret)
        world.constant |= {
            "snapshot_id": first["snapshots"].name, "key_id": first["keys"].name,
            "pack_id": first["data"].name, "pack": str(first["data"]),
            "secret_file": secret, "other_cache": cache, "handle_kind": str(kind),
            "handle": handle.hex(), "handle_mount": "/usr", "secret_unit": SECRET_UNIT,
            "seen_at": units.SOURCE_ROOT, "control_group": str(GROUP),
        }  # fmt: skip
        GROUP.mkdir()
        world.secrets |= {n: f"capkeep-{n}-{secrets.token_hex(12)}" for n in ("unit", "credential")}
        word = Path(self.base, "root-only", "word")
        word.write_text(world.secrets["credential"])
        Path("/etc/systemd/system", SECRET_UNIT).write_text(
            "[Service]\nExecStart=/usr/bin/sleep infinity\nUser=daemon\n"
            f"Environment=WORD={world.secrets['unit']}\nLoadCredential=word:{word}\n"
        )
        run("systemctl", "daemon-reload")
        run("systemctl", "start", SECRET_UNIT)

    def _engine(self, program: Path) -> None:
        """Put a program in the engine's place."""
        aside = f"{self.restic}.new"
        shutil.copy(program, aside)
        os.chmod(aside, 0o755)
        os.rename(aside, self.restic)

    # -- runs

    def _watcher(self, column: str, uid: int) -> Watcher:
        own = column in ROOMS and "user" in self._walls(column)
        watcher = BootedWatcher(uid, in_user_namespace=own)
        watcher.token = self.world.tokens[-1]
        self._uid = uid
        self._accepted = {name: accepted(name) for name in self._sockets(column).values()}
        return watcher

    def _walls(self, column: str) -> tuple[str, ...]:
        """The namespaces that a room's unit is to have of its own."""
        room = self.room(RoomKind(column))
        brief = json.loads(Path(units.brief_path(self.plan, f"capkeep-{room.name}")).read_text())
        return tuple(brief["walls"]["namespaces"])

    def _sockets(self, column: str) -> dict[str, str]:
        return {kind: by.get(column, by["reader"]) for kind, by in SOCKETS.items()}

    def _seen(self, seen: Seen, column: str, targets: dict[str, str]) -> Seen:
        # Where systemd gives a service a keyring of its own there are more keys without any harm.
        things = set(seen.things) - {"keyring"}
        if targets["token"] in run("setpriv", f"--reuid={self._uid}", "cat", "/proc/keys"):
            things.add("keyring")
        for kind, name in self._sockets(column).items():
            own = kind == "runner" and column in ROOMS  # we ask for the run ourselves
            if accepted(name) - self._accepted[name] > own:
                things.add(f"accepted:{kind}")
        run("journalctl", "--sync")
        said = run("journalctl", "-q", "-o", "cat", "--since=-5min")
        things |= {f"journal:{way}" for way in ("native", "stdout", "dev-log")
                   if f"{way} {targets['token']}\n" in said}  # fmt: skip
        with suppress(FileNotFoundError):
            if targets["token"] not in Path("/etc/machine-info").read_text():
                os.unlink("/etc/machine-info")
        return seen._replace(things=frozenset(things))

    def _run_part(self, column: str, names: tuple[str, ...]) -> Results:
        results = super()._run_part(column, names)
        for name in IN_ITS_OWN if column in RECIPES else ():
            if name in results:
                results[name] = results[name]._replace(inside=results[name].outside)
        (GROUP / "cgroup.max.depth").write_text("max")
        return results

    def _runner(self, column: str) -> Callable[[dict[str, str], int, ExitStack], Ran]:
        def prepared(targets: dict[str, str], uid: int, stack: ExitStack) -> Ran:
            targets |= {"booted": "yes"}
            for kind, name in self._sockets(column).items():
                path = "run" if name == "runner" else name
                targets[f"{kind}_door"] = f"{self.places.run}/{path}.sock"
            if column in ROOMS:
                return self._as_engine(column, targets, uid, stack)
            return self._without(column, targets, uid, stack)

        return prepared

    def _outside(self, column: str, uid: int, program: str, out: str) -> list[str]:
        if column in CONTROLS:
            return super()._outside(column, uid, program, out)
        properties = (*HARDENED, f"ReadWritePaths={out}") if column == "hardened" else SETCAP
        start = [program] if column == "hardened" else [self.world.today, "-I", "-S", program]
        return ["/usr/bin/systemd-run", "--quiet", "--wait", "--pipe", "--collect",
                f"--property=User=attack-{column}", *(f"--property={p}" for p in properties),
                "--", *start]  # fmt: skip

    def _as_engine(
        self, column: str, targets: dict[str, str], uid: int, stack: ExitStack
    ) -> Ran:  # fmt: skip
        """In the engine's place: what an administrator asks for, in the room that systemd starts."""
        out = self.room(RoomKind(column)).grant.write[0]
        targets |= {"out": out, "roomed": "yes"}
        if targets["only"] == "fill-disk":
            small_disk(out, uid, stack)
        self._engine(Path(self.world.program(f"{column}-{secrets.token_hex(4)}", targets)))
        done = subprocess.run(COMMANDS[column], capture_output=True, text=True, timeout=110,
                              check=False)  # fmt: skip
        filled = None if targets["only"] != "fill-disk" else free_bytes(out) < 1 << 20
        served = "silence-the-vault" not in targets["only"] or self._vault_serves()
        return Ran(out, (done.stderr + done.stdout)[-600:], "", served, filled)

    def _vault_serves(self) -> bool:
        """Whether the repository can still be listed by somebody else."""
        self._engine(Path("/usr/bin/restic"))
        before = {name: accepted(name) for name in self._accepted}
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(f"{self.places.run}/keeper-repo.sock")
            channel = Channel(sock)
            channel.send({"action": "snapshots"})
            results = [m for m in channel if m.get("event") == "result"]
        for name, count in before.items():  # these were ours
            self._accepted[name] += accepted(name) - count
        return bool(results) and not results[0].get("failure")


def accepted(socket_name: str) -> int:
    """How many connections a socket unit has taken."""
    said = run("systemctl", "show", "--property=NAccepted", f"capkeep-{socket_name}.socket")
    return int(said.partition("=")[2])


def run(*argv: str) -> str:
    """What a command prints. Raises RuntimeError with what it said if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    # What the world has of the host's kernel (a loop device, a setting) goes even when time is over.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    names = tuple(os.environ.get("ATTEMPTS", "").split()) or all_names()
    with World() as world:
        stage = Booted(world)
        for column in sys.argv[1:]:
            results = stage.run(column, names)
            print(json.dumps({"column": column, "results": results}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
