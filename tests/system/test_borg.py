"""borg beside restic in one job: the whole way, and what a hostile reader's manifest comes to."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rooms.house import house
from tests.system.conftest import Product

BORG = "/usr/bin/borg"
# Omits all archives but the newest, as somebody with the reader's password can.
OMIT = """
import sys
from borg.helpers import Manifest, Location
from borg.logger import setup_logging
from borg.repository import Repository
setup_logging(level="error")
with Repository(sys.argv[1], exclusive=True) as repository:
    repository._location = Location(sys.argv[1])
    manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)
    names = sorted(manifest.archives, key=lambda n: manifest.archives[n].ts)
    for name in names[:-1]:
        del manifest.archives[name]
    manifest.write()
    repository.commit(compact=False)
"""
# Lists what is no archive, and one under a second name.
INVENT = OMIT.replace(
    """for name in names[:-1]:
        del manifest.archives[name]
""",
    """manifest.archives["none"] = (b"9" * 32, "2000-01-01T00:00:00.000000")
    manifest.archives["alias"] = manifest.archives.list()[0][1], "2000-01-01T00:00:00.000000"
""",
)


@pytest.fixture(scope="module")
def both() -> Iterator[Product]:
    with house() as home:
        product = Product(home)
        product.configure(
            "[engines.restic]",
            f'[repositories.borg]\nengine = "borg"\nlocation = "{home.base}/repositories/borg"\n'
            f'password = {{ file = "{home.base}/etc/secrets/repo" }}\n[engines.restic]',
        )
        product.configure(
            'repositories = ["repo"]',
            'repositories = ["borg", "repo"]\ncheck = {}\n'
            "retention = { keep-last = 2, trust-clock = true }",
        )
        with home.doors():
            for name in ("repo", "borg"):
                made = product("init", name)
                assert made.code == 0, made
            yield product


def archives(product: Product) -> list[dict[str, object]]:
    said = product("snapshots", "borg", "--json")
    assert said.code == 0, said
    found: list[dict[str, object]] = json.loads(said.out)[0]["snapshots"]
    return found


def steps(said: str) -> dict[tuple[str, str], dict[str, object]]:
    ends = [json.loads(line) for line in said.splitlines()]
    return {(m["repository"], m["kind"]): m for m in ends if m["event"] == "step-end"}


def borg(product: Product, *words: str) -> subprocess.CompletedProcess[str]:
    """As the repository's owner could, outside of capkeep."""
    base = Path(product.home.base, "outside")
    base.mkdir(exist_ok=True)
    env = {"BORG_BASE_DIR": str(base), "BORG_PASSPHRASE": "a password", "PATH": "/usr/bin:/bin"}
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True)


def test_everything_comes_back_from_either_engine(both: Product) -> None:
    source = both.source / "metadata"
    source.mkdir()
    for name, mode in {"plain": 0o640, "setuid": 0o4755, "none": 0}.items():
        (source / name).write_text(name)
        (source / name).chmod(mode)
    os.setxattr(source / "plain", "user.note", b"kept")
    subprocess.run(["setfacl", "-m", "u:70001:r", source / "plain"], check=True, timeout=20)
    subprocess.run(["setcap", "cap_net_raw+ep", source / "setuid"], check=True, timeout=20)
    os.link(source / "plain", source / "linked")
    os.symlink("plain", source / "symlink")
    os.mkfifo(source / "fifo")
    os.mknod(source / "device", 0o600 | 0o020000, os.makedev(1, 3))
    os.chown(source / "none", 70000, 70000)
    with (source / "sparse").open("wb") as file:
        file.truncate(8 << 20)
    Path(os.fsdecode(bytes(source) + b"/not \xff utf-8\n")).write_text("odd")
    for path in source.iterdir():
        os.utime(path, ns=(1, 1_500_000_000_123_456_789), follow_symlinks=False)
    done = both("run", "--json")
    assert done.code == 0, done
    assert {k: s["outcome"] for k, s in steps(done.out).items() if k[1] == "backup"} == {
        ("borg", "backup"): "complete", ("repo", "backup"): "complete",
    }, done  # fmt: skip
    newest = archives(both)[-1]
    assert newest["host"] == "house"
    assert "capkeep:job" in newest["tags"]
    assert newest["paths"] == sorted([str(both.source), both.home.places.canary])
    for repository in ("borg", "repo"):
        target = f"{both.home.base}/back-{repository}"
        told = ("restore", "latest", str(both.source), "--repository", repository, "--to", target)
        restored = both.root(*told)
        assert restored.code == 0, restored
        below = Path(f"{target}{source}")
        for path in source.iterdir():
            was, now = path.lstat(), (below / path.name).lstat()
            assert (now.st_mode, now.st_uid, now.st_gid, now.st_rdev, now.st_mtime_ns) == (
                was.st_mode, was.st_uid, was.st_gid, was.st_rdev, was.st_mtime_ns,
            ), path  # fmt: skip
        assert (below / "plain").stat().st_ino == (below / "linked").stat().st_ino
        assert repository == "repo" or (below / "sparse").stat().st_blocks < 100
        for name, key in (("plain", "user.note"), ("plain", "system.posix_acl_access"),
                          ("setuid", "security.capability")):  # fmt: skip
            assert os.getxattr(below / name, key) == os.getxattr(source / name, key)


def test_it_is_looked_at_compared_and_kept_in_bounds(both: Product) -> None:
    for number in range(2):
        (both.source / "changing").write_text(f"{number}")
        done = both("run", "--json")
        assert done.code == 0, done
    found = steps(done.out)
    assert {kind for repository, kind in found if repository == "borg"} == {
        "backup", "diff", "check", "retention",
    }  # fmt: skip
    listed = archives(both)
    assert len(listed) == 2
    assert f"{both.source}/changing" in both.root("ls", "latest", "--repository", "borg").out
    assert f"{both.source}/changing" in both.root("find", "changing", "--repository", "borg").out
    ids = [str(s["id"])[:8] for s in listed[-2:]]
    assert f"{both.source}/changing" in both.root("diff", *ids, "--repository", "borg").out
    whole = both("check", "borg", "--read-data", "100%")
    assert whole.code == 0, whole
    sheet = Path(both.home.base, "sheet")
    exported = both.root("key", "export", "borg", "--output", str(sheet))
    assert exported.code == 0, exported
    assert "BORG_KEY " in sheet.read_text()
    for words in (("rotate", "borg"), ("add", "borg", "--password-file", str(sheet))):
        refused = both.root("key", *words)
        assert refused.code in (2, 4), refused
    assert both.root("key", "list", "borg").code == 0
    dry = both("run", "--dry-run")
    assert dry.code == 0, dry


def test_what_vanished_from_the_list_is_back_before_anything_is_removed(both: Product) -> None:
    for number in range(2):
        (both.source / "changing").write_text(f"before {number}")
        assert both("run").code == 0
    before = archives(both)
    borg(both, "/usr/bin/python3", "-c", OMIT, str(both.repository.with_name("borg")))
    done = both("run", "--json")
    assert done.code == 13, done
    lost = steps(done.out)["borg", "retention"]
    assert lost["failure"] == "damaged", lost
    assert "brought back" in str(lost["text"])
    now = archives(both)
    assert {str(s["id"]) for s in before} <= {str(s["id"]) for s in now}
    oldest = str(before[0]["id"])[:8]
    target = f"{both.home.base}/back-oldest"
    told = ("restore", oldest, f"{both.source}/changing", "--repository", "borg", "--to", target)
    restored = both.root(*told)
    assert restored.code == 0, restored
    assert Path(f"{target}{both.source}/changing").read_text() == "before 0"
    again = both("run")
    assert again.code == 0, again
    assert len(archives(both)) == 2


def test_a_list_of_nonsense_is_in_order_after_one_visit(both: Product) -> None:
    before = archives(both)
    borg(both, "/usr/bin/python3", "-c", INVENT, str(both.repository.with_name("borg")))
    done = both("retention", "job")
    assert done.code == 13, done
    assert "2 entries of the list were not what they say" in done.out
    assert archives(both) == before
    assert both("run").code == 0


def test_what_others_remove_stops_nothing_and_what_was_ours_is_told_once(both: Product) -> None:
    place = str(both.repository.with_name("borg"))
    plain = ("/usr/bin/borg", "--umask=0000")
    borg(both, *plain, "create", f"{place}::elsewhere", str(both.source))
    assert both("retention", "job").code == 0
    borg(both, *plain, "delete", f"{place}::elsewhere")
    done = both("retention", "job")
    assert done.code == 0, done
    oldest, *_ = archives(both)
    oldest_name = borg(both, *plain, "list", "--short", "--first=1", place).stdout.strip()
    borg(both, *plain, "delete", f"{place}::{oldest_name}")
    done = both("retention", "job")
    assert done.code == 13, done
    assert f"1 snapshots ({str(oldest['id'])[:8]}) are gone" in done.out, done
    done = both("retention", "job")
    assert done.code == 0, done


def test_what_a_reader_was_left_in_its_home_is_not_run(both: Product) -> None:
    """Whoever took borg over once could leave code there that every Python looks for (site.py)."""
    home = Path(both.home.base, "cache/reader-job-borg")
    python = ["/usr/bin/python3", "-c", "import site; print(site.getusersitepackages())"]
    told = subprocess.check_output(python, env={"HOME": str(home)}, text=True, timeout=20)
    folder = Path(told.strip())
    folder.mkdir(parents=True)
    run, seen = home / "has-run", home / "has-run-by-hand"
    (folder / "left.pth").write_text(f"import os; open(os.environ.get('LEFT', '{run}'), 'w')\n")
    for path in (home / ".local").rglob("*"):
        path.chmod(0o755)
    by_hand = {"HOME": str(home), "LEFT": str(seen)}
    subprocess.run(["/usr/bin/python3", "-c", "pass"], env=by_hand, check=True, timeout=20)
    assert seen.exists()
    (both.source / "file").write_text("changed once more\n")
    assert both("run").code == 0
    assert not run.exists()
