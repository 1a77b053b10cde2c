"""A reader of user mode: the user's own files, nobody is root, and the engine is hostile."""

import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import capkeep
from capkeep.config.load import load
from capkeep.host import apply
from capkeep.host.direct import converse
from capkeep.plan.compile import HostFacts, compile_plan
from capkeep.plan.model import Mode, Places, Plan, RoomKind
from tests.attack.world import LIMITS, PYTHON, UIDS, World

UID = UIDS["user"]
T = TypeVar("T")


class UserMode:
    """An installation that belongs to a normal user."""

    def __init__(self, world: World, restic: str) -> None:
        self.base = f"{world.base}/user"
        self.world = world
        self.places = Places(*(f"{self.base}/{n}" for n in ("etc", "state", "cache", "log", "run")))
        os.mkdir(self.base, 0o755)
        os.chown(self.base, UID, UID)
        self.targets = {
            "secret_file": f"{self.places.secrets}/other",
            "other_cache": f"{self.places.cache}/other",
            "pack": f"{self.base}/repo/pack",
        }
        self.plan = _as_user(lambda: self._make(restic))

    def _make(self, restic: str) -> Plan:
        os.makedirs(self.places.secrets)
        os.makedirs(f"{self.base}/repo")
        for path, name in (
            (f"{self.places.secrets}/repo", "password"),
            (self.targets["secret_file"], "file"),
        ):
            Path(path).write_text(self.world.secrets[name])
            os.chmod(path, 0o600)
        subprocess.run([restic, "--no-cache", "init"], check=True, timeout=60, stdout=subprocess.DEVNULL, env={
            "RESTIC_PASSWORD_FILE": f"{self.places.secrets}/repo", "RESTIC_REPOSITORY": f"{self.base}/repo"})  # fmt: skip
        Path(self.targets["pack"]).write_text("a pack")
        Path(self.places.config, "capkeep.toml").write_text(f"""
[repositories.repo]
engine = "restic"
location = "{self.base}/repo"
password = {{ file = "{self.places.secrets}/repo" }}
[engines.restic]
program = "{restic}"
[jobs.own]
repositories = ["repo"]
include = ["{self.world.base}/source"]
[limits]
memory = "{LIMITS["memory"] >> 20}MiB"
processes = {LIMITS["processes"]}
free-space = "12MiB"
""")
        plan = compile_plan(
            load(self.places.config, user_mode=True),
            HostFacts(mode=Mode.USER, places=self.places, group=UID, interpreter=PYTHON,
                      package=str(Path(capkeep.__file__).parents[1]), hostname="attacked",
                      caller=(UID, UID), caller_name="user"),
        )  # fmt: skip
        for change in apply.changes(plan):
            change.make()
        apply.renew_canary(plan)
        Path(self.targets["other_cache"]).write_text(self.world.secrets["cache"])
        return plan

    @property
    def out(self) -> str:
        """Where the engine may write."""
        return next(r for r in self.plan.rooms if r.kind is RoomKind.READER).grant.write[0]

    def run(self, program: str) -> str:
        """A backup with `program` for an engine; what the room said of its end."""
        repository = self.plan.repository("repo")._replace(program=program)
        plan = self.plan._replace(repositories=(repository,))
        room = next(r for r in plan.rooms if r.kind is RoomKind.READER)
        result = _as_user(lambda: converse(plan, room, {"action": "backup"}, lambda _: None))
        return json.dumps({k: result.get(k) for k in ("failure", "text", "engine_words")})


def _as_user(do: Callable[[], T]) -> T:
    """Do it in a child that is that user and nothing more."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(UID, UID, UID)
            os.setresuid(UID, UID, UID)
            os.environ.clear()
            with open(sending, "wb") as file:
                pickle.dump(do(), file)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(sending)
    with open(receiving, "rb") as file:
        data = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return cast(T, pickle.loads(data))
