"""Drills: a part of a snapshot is restored for a moment, and compared with what it should be."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import stat
import struct
import time
from pathlib import Path

from capkeep.plan.model import RoomKind
from tests.contract.tree import LABEL
from tests.engines import restic_programs
from tests.rooms.house import wait_for
from tests.system.conftest import SECONDS, Product, Said
from tests.system.scenes import processes, programs, random_file, start
from tests.system.test_dumps import home_of, staged, take
from tests.system.test_upkeep import restic, told

DRILL = """
[jobs.job.drill]
sample = 100
always = ["{source}/file"]
"""
CAPABILITY = struct.pack(
    "<5I", 0x02000001, 1 << 10, 0, 0, 0
)  # vfs_cap_data: net_bind_service, effective
ACL = struct.pack("<I", 2) + b"".join(  # as setfacl(1) makes it: u::rw,u:1000:r,g::r,m::r,o::-
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1))
)  # fmt: skip

FAR_ACL = ACL.replace(struct.pack("<HHI", 2, 4, 1000), struct.pack("<HHI", 2, 4, 70_000))


def drilled(product: Product, more: str = "") -> None:
    line = f'include = ["{product.source}"]\n'
    product.configure(line, line + DRILL.format(source=product.source) + more)


def furnish(source: Path) -> None:
    """Everything that can be given to a file, and what a namespace cannot give."""
    for name, owner, mode in (
        ("users", (1000, 1000), 0o640), ("setuid", (0, 4), 0o4755), ("far", (70_000, 70_000), 0o600),
        ("capable", (0, 0), 0o755), ("listed", (33, 33), 0o640),
    ):  # fmt: skip
        path = source / name
        path.write_text(f"{name}\n")
        os.chown(path, *owner)
        path.chmod(mode)
    os.setxattr(source / "capable", "security.capability", CAPABILITY)
    os.setxattr(source / "listed", "system.posix_acl_access", ACL)
    os.setxattr(source / "users", "user.note", b"kept")
    (source / "shared").write_text("with somebody of a directory of users\n")
    os.setxattr(source / "shared", "system.posix_acl_access", FAR_ACL)
    (source / "link").symlink_to("nowhere")
    os.mkfifo(source / "fifo", 0o600)
    os.mknod(source / "device", 0o20600, os.makedev(1, 3))
    (source / "deep").mkdir(mode=0o700)
    (source / "deep" / "name with * and [").write_text("odd\n")


def part(said: Said) -> dict[str, object]:
    """What a drill found out."""
    (found,) = [p for p in told(said, "part") if p["kind"] == "drill"]
    facts = found["facts"]
    assert isinstance(facts, dict)
    return facts


def scratch(product: Product) -> Path:
    return Path(product.home.base, "cache/prover-repo/restored")


def test_a_drill_restores_owners_and_all_and_finds_them_right(any_engine: Product) -> None:
    product = any_engine
    if (product.source / "users").exists():
        return
    furnish(product.source)
    os.setxattr(product.source / "capable", LABEL, b"x")
    if product.home.compiled().repositories[0].program != str(restic_programs()["0.14"]):
        os.setxattr(product.source / "users", LABEL, b"x")
        os.setxattr(product.source / "users", "user.after", b"kept as well")
    drilled(product)
    assert product("run").code == 0
    done = product("drill", "--json")
    assert done.code == 0, (done.out, done.err, product.home.said())
    facts = part(done)
    assert facts["differing"] == 0
    assert facts["apart"] == {"owners": 1, "devices": 1, "attributes": 1}, facts
    live = facts["live"]
    assert isinstance(live, dict)
    # All but the FIFO are compared with the live files: nothing has changed since.
    entries = facts["entries"]
    assert isinstance(entries, int)
    assert live == {"same": entries - 1}, facts
    assert not scratch(product).exists()
    # Without ids of its own it restores all the same, and says what it could not compare.
    plan = product.home.compiled()
    (prover,) = [r for r in plan.rooms if r.kind is RoomKind.PROVER]
    less = prover._replace(grant=prover.grant._replace(subordinate=(0, 0), capabilities=()))
    rooms = tuple(less if r is prover else r for r in plan.rooms)
    product.home.apply(plan._replace(rooms=rooms))
    done = product("drill", "--json")
    assert done.code == 0, told(done, "difference")
    apart = part(done)["apart"]
    assert isinstance(apart, dict)
    assert apart["owners"] >= 5, apart


def test_a_drill_that_could_compare_nothing_has_not_passed(product: Product) -> None:
    with home_of("nobody") as home:
        for path in product.source.rglob("*"):
            if path.is_file():
                os.truncate(path, 2 << 20)
        line = f'include = ["{product.source}"]\n'
        more = '[jobs.job.drill]\nmax-size = "1MiB"\n'
        product.configure(line, line + more)
        assert product("run").code == 0
        done = product("drill", "--json")
        assert done.code == 1, done
        assert "nothing was proven" in done.out
        status = product("status")
        assert "no drill has passed yet" in status.out, status
        assert not scratch(product).exists()
        # A dump that no backup has taken yet is not passed over in silence.
        (product.source / "small").write_text("small\n")
        assert product("run").code == 0
        path = home / "shop.db"
        with contextlib.closing(sqlite3.connect(path)) as shop, shop:
            shop.execute("CREATE TABLE goods (name)")
        shutil.chown(path, "nobody")
        take(product, "shop", f'kind = "sqlite"\npaths = ["{path}"]\n')
        done = product("drill", "--json")
        assert done.code == 0, done
        (warned,) = [m for m in told(done, "warning") if "nothing to load" in str(m["text"])]
        assert str(staged(product, "shop")) in str(warned["text"])


def exchange(product: Product, snapshot: str) -> None:
    """Let the record take another snapshot for the one that every backup made."""
    (path,) = Path(product.home.base, "state/records").glob("*.db")
    with contextlib.closing(sqlite3.connect(path)) as record, record:
        record.execute("UPDATE step SET snapshot = ? WHERE kind = 'backup'", (snapshot,))


def test_what_is_wrong_in_a_snapshot_is_found(product: Product) -> None:
    """A snapshot that holds other content, mode and owner than the files have, and always had."""
    drilled(product, 'max-size = "8MiB"\n')
    source = product.source
    for name in ("content", "mode", "owner", "right", "attribute"):
        (source / name).write_text("right\n")
    moment = 1_700_000_000 * 10**9
    (source / "content").write_text("wrong\n")
    (source / "mode").chmod(0o600)
    os.chown(source / "owner", 1000, 1000)
    os.setxattr(source / "attribute", "user.wrong", b"1")
    for path in source.iterdir():
        os.utime(path, ns=(moment, moment))
    restic(product, "backup", "--tag=capkeep:job", str(source))
    (wrong,) = [s["id"] for s in json.loads(restic(product, "snapshots", "--json"))]
    (source / "content").write_text("right\n")
    (source / "mode").chmod(0o644)
    os.chown(source / "owner", 0, 0)
    os.removexattr(source / "attribute", "user.wrong")
    for path in source.iterdir():
        os.utime(path, ns=(moment, moment))
    time.sleep(0.2)  # the files have not changed since the backup begins
    assert product("run").code == 0
    assert product("drill").code == 0
    exchange(product, wrong)
    done = product("drill", "--json")
    assert done.code == 13, done
    facts = part(done)
    found = dict(facts["differences"])  # type: ignore[call-overload]
    assert {Path(p).name for p in found} == {"content", "mode", "owner", "attribute"}
    words = {Path(p).name: text for p, text in found.items()}
    assert words["mode"] == "mode 0600, live 0644"
    assert words["owner"] == "uid 1000, live 0; gid 1000, live 0"
    assert words["content"] == "content differs"
    assert words["attribute"] == "attributes: user.wrong is there, live not"
    status = product("status")
    assert status.code == 1, status
    assert "4 of" in status.out, status
    again = product("drill", "--json", "--seed", f"{facts['seed']}@{wrong[:16]}")
    assert part(again)["differences"] == facts["differences"]
    assert product("run").code == 0
    old = part(product("drill", "--json"))  # every fourth
    assert (old["old"], old["snapshot"], old["live_differing"]) == (True, wrong, 4)
    assert product("drill", "--all").code == 0
    assert product("status").code == 0


def test_content_that_has_rotted_is_found_and_a_killed_drill_leaves_nothing(
    product: Product,
) -> None:
    drilled(product, "after-backup = true\n")
    random_file(product.source / "random", 48)
    done = product("run", "--json")
    assert done.code == 0, done
    assert [m["kind"] for m in told(done, "step-end")] == ["backup", "drill"]
    place = scratch(product)
    running = start(product, "drill", "--json")
    wait_for((place / "part").exists)
    product.home.plan = product.home.compiled()
    found = processes(product, "prover")
    assert len(found) >= 2, "the room and its engine"
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    out, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == 1, out
    assert b"prover-repo" in out
    assert not place.exists()
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    running = start(product, "drill", "--json")
    wait_for((place / "part").exists)
    for pid in programs(product, "runner"):
        os.kill(pid, signal.SIGKILL)
    running.communicate(timeout=SECONDS)
    wait_for(lambda: not place.exists())
    pack = max(product.repository.glob("data/*/*"), key=lambda p: p.stat().st_size)
    pack.chmod(0o600)
    with open(pack, "r+b") as file:
        file.seek(1000)
        file.write(os.urandom(1000))
    done = product("drill", "--all", "--json")
    assert done.code == 13, done
    assert str(product.source / "random") in done.out
    assert not place.exists()


def test_a_dump_is_loaded_and_counted(product: Product) -> None:
    with home_of("nobody") as home:
        path = home / "shop.db"
        with contextlib.closing(sqlite3.connect(path)) as shop, shop:
            shop.execute("CREATE TABLE goods (name)")
            shop.executemany("INSERT INTO goods VALUES (?)", [(str(n),) for n in range(500)])
        shutil.chown(path, "nobody")
        drilled(product)
        take(product, "shop", f'kind = "sqlite"\npaths = ["{path}"]\n')
        assert product("run").code == 0
        done = product("drill", "--json")
        assert done.code == 0, done
        assert part(done)["dumps"] == {"databases": 1, "tables": 1, "rows": 500}
        last = staged(product, "shop") / "last"
        (copy,) = last.glob("*.db")
        with contextlib.closing(sqlite3.connect(copy)) as shop, shop:
            shop.execute("DELETE FROM goods WHERE name = '7'")
        restic(product, "backup", "--tag=capkeep:job", str(product.source), str(last))
        wrong = json.loads(restic(product, "snapshots", "--json"))[-1]["id"]
        exchange(product, wrong)
        for words in ((), ("--all",)):
            done = product("drill", "--json", *words)
            assert done.code == 19, done
            found = part(done)["differences"]
            assert isinstance(found, list)
            text = "1 tables, 499 rows; the dumper noted 1 and 500"
            assert [str(copy), text] in found, found
