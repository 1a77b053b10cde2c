"""An installation whose readers are started by launchers: one user, no root parent."""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from capkeep.config.load import load
from capkeep.host import apply, launchers, lent
from capkeep.host.compile import hide_by_real_names
from capkeep.plan.compile import HostFacts, compile_plan
from capkeep.plan.model import Mode, Plan, Starter
from capkeep.rooms.protocol import Message
from tests.engines import rclone
from tests.rooms.house import INTERPRETER, House
from tests.system.conftest import SECONDS, Said

# One who is there on every Debian and runs nothing: configurations know users by their names.
USER: Final = pwd.getpwnam("games")
HOST: Final = f'[host]\nstart = "launcher"\nuser-prefix = "{USER.pw_name}"\n'


class Launched(House):
    """As a house; `start` is who starts its rooms."""

    def compiled(self) -> Plan:
        path = Path(self.places.config, "capkeep.toml")
        text = path.read_text()
        if HOST not in text:
            path.write_text(text + HOST)
        facts = HostFacts(
            mode=Mode.SYSTEM, places=self.places, group=USER.pw_gid, interpreter=INTERPRETER,
            package=self.package, hostname="house", rclone=str(rclone()), starter=Starter.LAUNCHER,
            users={USER.pw_name: (USER.pw_uid, USER.pw_gid)},
        )  # fmt: skip
        config = lent.resolved(load(self.places.config), Mode.SYSTEM)
        return hide_by_real_names(lent.bound(compile_plan(config, facts)))

    def apply(self, plan: Plan) -> None:
        for change in (*apply.changes(plan), *launchers.changes(plan)):
            if change.needed():
                change.make()
        for removal in launchers.obsolete(plan):
            if removal.needed():
                removal.make()
        apply.renew_canary(plan)

    def __call__(self, *words: str, uid: int = USER.pw_uid, gid: int = USER.pw_gid) -> Said:
        """A command of the rooms' one user, or of another."""
        done = subprocess.run(
            self.command(*words), user=uid, group=gid, extra_groups=[], cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin"}, capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    @property
    def launcher(self) -> Path:
        return Path(self.places.launcher("reader-job-repo"))


@contextlib.contextmanager
def launched() -> Iterator[Launched]:
    base = tempfile.mkdtemp(prefix="ck-", dir="/srv")
    try:
        yield Launched(base)
    finally:
        shutil.rmtree(base)


def only_root_s(path: Path, text: str) -> None:
    path.write_text(text)
    os.chown(path, 0, 0)
    path.chmod(0o600)


class LaunchedTarget(Launched):
    """A host that is pulled from: one reader without a wire, which its login starts."""

    def compiled(self) -> Plan:
        plan = super().compiled()
        repositories = tuple(r._replace(location="", pulled_by="a key") for r in plan.repositories)
        runner, reader = plan.runner, plan.room("reader-job-repo")
        rooms = (runner, reader._replace(wire=None, secrets=(), door=None))
        return plan._replace(repositories=repositories, rooms=rooms)


@contextlib.contextmanager
def begun() -> Iterator[Launched]:
    """One with a repository, and a source that is for root alone."""
    with launched() as made:
        only_root_s(Path(made.base, "source/secret"), "for root alone\n")
        done = made("init")
        assert done.code == 0, done
        yield made


def events(home: Launched, *words: str) -> list[Message]:
    return [json.loads(line) for line in home(*words, "--json").out.splitlines()]


def ended(said: list[Message]) -> Message:
    return next(m for m in said if m.get("event") == "end")


def lost_to(said: list[Message]) -> str:
    """Why it failed, where nothing but the runner has proven itself: then no engine was started."""
    assert {m["process"] for m in said if m["event"] == "proof"} == {"room"}
    end = ended(said)
    assert end["failure"] == "weakened", said
    return f"{end['text']} {end['reasons']}"
