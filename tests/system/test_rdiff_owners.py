"""A mirror whose files belong to their owners: kept so, shown so, and what its vault cannot do."""

import json
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.host.audit import by_design
from tests.engines import rdiff_backup_from_pypi
from tests.rooms.house import House, house
from tests.system.conftest import Product
from tests.system.test_rdiff import _snapshots, _with_rdiff_backup

HOSTILE = Path(__file__).parents[1] / "attack" / "rdiff_owner.py"
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"]
SECONDS = 60


@pytest.fixture(scope="module")
def mirror() -> Iterator[Product]:
    with house() as home:
        _with_rdiff_backup(home)
        with home.doors():
            product = Product(home)
            made = product("init")
            assert made.code == 0, made
            yield product


def _owners(product: Product, now: str, before: str = "") -> None:
    word = 'engine = "rdiff-backup"\n'
    product.configure(
        word + (f'owners = "{before}"\n' if before else ""),
        word + (f'owners = "{now}"\n' if now else ""),
    )


def _shown(top: Path) -> dict[str, tuple[object, ...]]:
    """What `cp -a` would take along, special bits apart."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        state = path.lstat()
        attributes = {n: os.getxattr(path, n, follow_symlinks=False)
                      for n in os.listxattr(path, follow_symlinks=False)
                      if not n.startswith("security.")}  # fmt: skip
        found[str(path.relative_to(top))] = (
            stat.S_IFMT(state.st_mode), state.st_uid, state.st_gid, state.st_nlink, attributes,
            0 if path.is_symlink() else state.st_mode & 0o777,
            0 if path.is_symlink() else int(state.st_mtime),
            path.read_bytes() if stat.S_ISREG(state.st_mode) else b"",
        )  # fmt: skip
    return found


def _fill(source: Path) -> None:
    for number, mode in enumerate((0o4755, 0o2755, 0o000, 0o640)):
        path = source / f"f{number}"
        path.write_text(str(number))
        os.chown(path, 2000 + number, 3000 + number)
        path.chmod(mode)
    os.chown(source / "f3", os.stat("/").st_uid, 0)
    folder = source / "folder"
    folder.mkdir()
    (folder / "in").write_text("in")
    (folder / "in").chmod(0o600)
    os.chown(folder / "in", 70_000, 70_000)
    words = ["setfacl", "-m", "u:70001:rwx,d:u:70001:rwx", str(folder)]
    subprocess.run(words, check=True, timeout=SECONDS)
    os.setxattr(folder / "in", "user.note", b"kept")
    os.chown(folder, 4000, 4000)
    folder.chmod(0o1550)
    os.link(source / "f0", source / "zlinked")
    os.symlink("nowhere", source / "symlink")
    os.lchown(source / "symlink", 5000, 5000)
    os.mkfifo(source / "fifo")
    os.chown(source / "fifo", 6000, 6000)


def test_files_belong_to_their_owners_and_come_back(mirror: Product) -> None:
    source, base = mirror.source, mirror.home.base
    _fill(source)
    kept = Path(f"{mirror.repository}{source}")
    assert mirror("run").code == 0
    vault = mirror.repository.stat().st_uid
    assert {p.lstat().st_uid for p in kept.rglob("*")} == {vault}

    # From now on, what has not changed since included.
    _owners(mirror, "numbers")
    done = mirror("run")
    assert done.code == 0, done.out + done.err
    assert "were given to their owners" in done.out
    assert _shown(kept) == _shown(source)
    assert not any(p.lstat().st_mode & 0o6000 for p in kept.rglob("*") if not p.is_symlink())
    assert (mirror.repository.stat().st_uid, mirror.repository.stat().st_mode & 0o777) == (
        vault,
        0o700,
    )
    (source / "folder" / "in").write_text("changed")
    (source / "folder" / "new").write_text("new")
    os.chown(source / "folder" / "new", 7000, 7000)
    (source / "f1").unlink()
    os.chown(source / "f2", 2222, 2222)
    assert mirror("run").code == 0
    assert _shown(kept) == _shown(source)

    # Nothing is lost: special bits and all come back.
    assert mirror("check", "--read-data", "all").code == 0
    restored = mirror.root("restore", "latest", str(source), "--to", f"{base}/back")
    assert restored.code == 0, restored
    back = Path(f"{base}/back{source}")
    assert _shown(back) == _shown(source)
    assert (back / "f0").stat().st_mode & 0o7777 == 0o4755
    first = str(_snapshots(mirror)[0]["id"])
    assert mirror.root("restore", first, str(source), "--to", f"{base}/old").code == 0
    assert Path(f"{base}/old{source}/f1").stat().st_mode & 0o7777 == 0o2755

    # It is said by whoever is asked.
    vault_room = next(r for r in mirror.home.compiled().rooms if r.kind == "vault")
    assert sorted(vault_room.grant.capabilities) == CAPABILITIES
    said = "\n".join(by_design(mirror.home.compiled()))
    assert f"{mirror.repository}, and no others, to their owners with CHOWN DAC_OVERRIDE" in said

    # Not back again without root: a vault without capabilities could not even read them.
    _owners(mirror, "", "numbers")
    done = mirror("run")
    assert done.code not in (0, 3), done
    assert "belong to their owners" in done.out + done.err
    _owners(mirror, "names")
    assert mirror("run").code == 0
    assert _shown(kept) == _shown(source)


def _hostile(home: House, program: str, port: int) -> dict[str, str]:
    """What the hostile program says that it could do in the vault's place."""
    repository = Path(home.base, "repositories/repo")
    # The vault starts the interpreter that the engine's first line names, whatever that is.
    Path(program).write_text(f"#!/usr/bin/python3 {program}\n{HOSTILE.read_text()}")
    Path(program).chmod(0o755)
    (repository / "port").write_text(str(port))
    config = Path(home.base, "etc/capkeep.toml")
    before = config.read_text()
    try:
        config.write_text(f'{before}\n[engines.rdiff-backup]\nprogram = "{program}"\n')
        home.apply(home.compiled())
        Product(home).root("ls", "latest")
        found: dict[str, str] = json.loads((repository / "results").read_text())
        return found
    finally:
        config.write_text(before)
        home.apply(home.compiled())


def test_a_hostile_vault_changes_nothing_but_its_repository(mirror: Product) -> None:
    repository = mirror.repository
    devices = {n: os.stat(f"/dev/{n}") for n in ("null", "zero", "full", "random", "urandom")}
    program = f"{mirror.home.base}/hostile"
    if "owners =" not in Path(mirror.home.base, "etc/capkeep.toml").read_text():
        _owners(mirror, "numbers")
    log = Path(mirror.home.base, "doors-said").stat()
    with socket.create_server(("127.0.0.1", 0)) as server:
        said = _hostile(mirror.home, program, server.getsockname()[1])
    assert [n for n, what in said.items() if what == "done"] == []
    assert len(said) > 35
    mine = (repository / "anybodys").stat()
    assert (mine.st_uid, mine.st_gid, mine.st_mode & 0o7777) == (12345, 23456, 0o400)
    for path in repository.rglob("*"):
        state = path.lstat()
        assert stat.S_ISLNK(state.st_mode) or not state.st_mode & 0o6000, path
        assert not stat.S_ISBLK(state.st_mode), path
        assert "security.capability" not in os.listxattr(path, follow_symlinks=False), path
    for name, state in devices.items():
        now = os.stat(f"/dev/{name}")
        assert (now.st_mode, now.st_uid, now.st_gid) == (state.st_mode, state.st_uid, state.st_gid)
    now = Path(mirror.home.base, "doors-said").stat()
    assert (now.st_mode, now.st_uid) == (log.st_mode, log.st_uid)
    assert os.stat("/etc/passwd").st_uid == os.stat("/usr/bin/true").st_uid == 0


def test_rdiff_backup_from_pypi_loses_nothing(mirror: Product) -> None:
    """In a virtual environment that no room would see by itself, without pyxattr and pylibacl."""
    program = rdiff_backup_from_pypi()
    python = str(program.with_name("python"))
    for library in ("xattr", "posix1e"):
        missing = subprocess.run(
            [python, "-c", f"import {library}"], capture_output=True, timeout=SECONDS
        )
        assert b"ModuleNotFoundError" in missing.stderr
    repository, source = mirror.repository, mirror.source
    config = Path(mirror.home.base, "etc/capkeep.toml")
    before = config.read_text()
    repository.rename(repository.with_name("debians"))
    config.write_text(f'{before}\n[engines.rdiff-backup]\nprogram = "{program}"\n')
    if "owners =" not in before:
        _owners(mirror, "numbers")
    mirror.home.apply(mirror.home.compiled())
    assert mirror("init").code == 0
    if not (source / "f0").exists():
        _fill(source)
    done = mirror("run")
    assert done.code == 0, done
    assert "rdiff-backup 2.2.6" in done.out
    assert _shown(Path(f"{repository}{source}")) == _shown(source)
    target = f"{mirror.home.base}/back-pypi"
    assert mirror.root("restore", "latest", str(source), "--to", target).code == 0
    assert _shown(Path(f"{target}{source}")) == _shown(source)
    assert mirror("check", "--read-data", "all").code == 0
