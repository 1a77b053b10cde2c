"""A repository that resticprofile's settings made is gone on with by the configuration taken over."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from capkeep.plan.model import RoomKind
from tests.engines import restic_programs
from tests.rooms.house import UIDS, house
from tests.system.conftest import Product

PROFILE = """\
version: "1"
global:
  restic-binary: "{restic}"
default:
  repository: "local:{base}/repositories/old"
  password-file: old-password
files:
  inherit: default
  backup:
    source:
      - "{base}/source"
    exclude: ["*.tmp", "**/cache"]
    exclude-file: excludes
    one-file-system: true
    tag: [nightly]
    host: earlier-name
  retention:
    after-backup: true
    keep-last: 5
    prune: true
"""


def test_a_repository_goes_on(tmp_path: Path) -> None:
    program = str(restic_programs()["0.18"])
    with house() as home:
        source, repository = Path(home.base, "source"), Path(home.base, "repositories/old")
        for name in ("kept", "a.tmp", "b/cache/x", "b/c.o", "b/kept"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(name)
        for name, text in {"old-password": "of old\n", "excludes": "*.o\n"}.items():
            Path(home.base, "etc", name).write_text(text)
            Path(home.base, "etc", name).chmod(0o600)
        profile = Path(home.base, "etc/profiles.yaml")
        profile.write_text(PROFILE.format(base=home.base, restic=program))

        def restic(*words: str) -> str:
            environment = {
                "RESTIC_REPOSITORY": str(repository), "RESTIC_PASSWORD": "of old",
                "HOME": str(tmp_path), "PATH": "/usr/bin:/bin",
            }  # fmt: skip
            return subprocess.run(
                [program, "--no-cache", *words],
                env=environment, capture_output=True, text=True, timeout=60, check=True,
            ).stdout  # fmt: skip

        restic("init")
        # As `resticprofile --dry-run files.backup` says it would call restic.
        restic(
            "backup", "--exclude=*.tmp", "--exclude=**/cache", "--one-file-system",
            f"--exclude-file={home.base}/etc/excludes", "--tag=nightly", "--host=earlier-name",
            str(source),
        )  # fmt: skip
        product = Product(home)
        config = Path(home.base, "etc/capkeep.toml")

        def capkeep(*words: str) -> tuple[int, str]:
            argv = [sys.executable, "-m", "capkeep", "--prefix", home.base, *words]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
            return done.returncode, done.stdout + done.stderr

        code, said = capkeep("import", str(profile), "--output", str(config), "--overwrite")
        assert code == 3, said  # resticprofile was told by nobody when to run
        written = tomllib.loads(config.read_text())
        assert list(written["jobs"]) == ["files"]
        assert "of old" not in said + config.read_text()
        assert capkeep("config", "check")[0] == 0, config.read_text()
        subprocess.run(
            ["chown", "-R", str(UIDS[RoomKind.VAULT]), repository], check=True, timeout=20
        )
        home.apply(home.compiled())
        with home.doors():
            run = product("run")
            assert run.code == 0, run
            first, *others = json.loads(restic("snapshots", "--json"))
            for snapshot in others:
                assert snapshot["hostname"] == first["hostname"] == "earlier-name"
                assert "nightly" in snapshot["tags"]
            assert len(others) == 1
            files = [
                {json.loads(line).get("path") for line in restic("ls", "--json", s["id"]).split("\n") if line}
                for s in (first, others[-1])
            ]  # fmt: skip
            below = [{p for p in found if p and p.startswith(f"{source}/")} for found in files]
            assert (
                below[0] == below[1] == {f"{source}/{n}" for n in ("kept", "file", "b", "b/kept")}
            )
