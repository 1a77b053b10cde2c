"""A real borg on a real vault, without rooms around it."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from capkeep.engines.base import Call, Command, Snapshot
from capkeep.engines.borg import ENGINE
from capkeep.kernel.process import interpreter
from capkeep.plan.model import Access, Job
from capkeep.rooms.scripts import TOOLS, interpreter_of
from tests.rooms.vaultkit import RELAY, Vault

PASSWORD: Final = "correct horse"


class Borg:
    """A repository, and all that is needed to work on it."""

    def __init__(self, base: Path, program: Path) -> None:
        self.base = base
        self.repository = base / "repository"
        for name in ("repository", "cache", "tmp", "state", "source"):
            (base / name).mkdir()
        self.source = base / "source"
        self.program = str(program)
        self.call = Call(
            program=self.program, repository=str(self.repository), cache_dir=str(base / "cache"),
            tmp_dir=str(base / "tmp"), password=PASSWORD,
            relay=(interpreter(), "-I", "-S", RELAY, "3"),
            interpreter=interpreter_of(self.program), tools=TOOLS,
        )  # fmt: skip
        self.said: list[dict[str, object]] = []  # by the last vault

    def run(
        self, command: Command, access: Access = Access.APPEND, *, uid: int = 0, stdin: bytes = b"",
    ) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
        """A call of the engine on a vault of its own."""
        kind = ("borg", self.program)
        with Vault(str(self.repository), self.base / "state", access, engine=kind) as vault:
            done = self.on(vault, command.argv, dict(command.env), command.cwd, stdin=stdin)
            self.said = vault.finish()
        return done

    def on(
        self, vault: Vault, argv: tuple[str, ...], env: Mapping[str, str], cwd: str = "", *,
        stdin: bytes = b"",
    ) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
        """A program that finds the handover where engines find it."""
        handover = vault.handover.fileno()
        return subprocess.run(
            argv, env=dict(env), cwd=cwd or "/", input=stdin, capture_output=True, timeout=100,
            pass_fds=(3, handover), preexec_fn=lambda: os.dup2(handover, 3), check=False,
        )  # fmt: skip

    def admin(self, command: Command) -> bytes:
        done = self.run(command, Access.ADMIN)
        assert done.returncode == 0, done
        return done.stdout

    def init(self) -> None:
        self.admin(ENGINE.init(self.call))

    def job(self, **more: object) -> Job:
        plain: dict[str, object] = {
            "name": "j", "repositories": ("r",), "include": (str(self.source),),
            "tags": ("capkeep:j",), "host": "here",
        }  # fmt: skip
        return Job(**(plain | more))  # type: ignore[arg-type]

    def back_up(self) -> None:
        done = self.run(ENGINE.backup(self.call, self.job()))
        assert done.returncode == 0, done

    def snapshots(self) -> tuple[Snapshot, ...]:
        return ENGINE.parse_snapshots(self.admin(ENGINE.snapshots(self.call)))

    def restored(self, snapshot: Snapshot) -> Path:
        """Where the source is then."""
        target = self.base / f"back-{snapshot.id[:8]}"
        target.mkdir()
        done = self.run(ENGINE.restore(self.call, snapshot.word, str(target)))
        assert done.returncode == 0, done
        return Path(f"{target}{self.source}")
