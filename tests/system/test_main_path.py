"""The main job, from an ordinary user's `capkeep run` to a verified restore, with every engine."""

import json
import os
import subprocess
from pathlib import Path

from tests.rooms.house import MEMBER, STRANGER
from tests.system.conftest import Product


def test_a_member_backs_up_what_only_root_may_read(any_engine: Product) -> None:
    secret = any_engine.source / "secret"
    secret.write_bytes(b"only root may read this\n")
    secret.chmod(0o000)
    foreign = any_engine.source / "foreign"
    foreign.mkdir(mode=0o700, exist_ok=True)
    os.chown(foreign, 70000, 70000)
    (foreign / "mine").write_text("hers")
    os.chown(foreign / "mine", 70000, 70000)
    done = any_engine("run")
    assert done.code == 0, done
    target = Path(any_engine.home.base, "back-secret")
    restored = any_engine.root("restore", "latest", str(any_engine.source), "--to", str(target))
    assert restored.code == 0, restored
    below = Path(f"{target}{any_engine.source}")
    assert (below / "secret").read_bytes() == secret.read_bytes()
    state = (below / "foreign" / "mine").stat()
    assert (state.st_uid, state.st_gid) == (70000, 70000)


def test_snapshots_list_the_real_paths(any_engine: Product) -> None:
    assert any_engine("run").code == 0
    canary = any_engine.home.places.canary
    assert any_engine.newest()["paths"] == sorted([str(any_engine.source), canary])


def test_an_unchanged_second_run_has_a_parent_and_adds_nothing(any_engine: Product) -> None:
    assert any_engine("run").code == 0
    first = any_engine.newest()
    lines = [json.loads(line) for line in any_engine("run", "--json").out.splitlines()]
    assert any_engine.newest()["parent"] == first["id"]
    totals = next(m["totals"] for m in lines if m["event"] == "step-end")
    assert (totals["files_new"], totals["files_changed"]) == (0, 0)


def test_every_process_has_proven_itself(any_engine: Product) -> None:
    lines = [json.loads(line) for line in any_engine("run", "--json").out.splitlines()]
    proofs = {(m["room"].split("-")[0], m["process"]): m for m in lines if m["event"] == "proof"}
    compared = {("keeper", "room"), ("keeper", "engine")}  # where something has changed
    assert set(proofs) - compared == {
        ("runner", "room"), ("reader", "room"), ("reader", "engine"), ("vault", "vault"),
    }  # fmt: skip
    for (room, _), proof in proofs.items():
        facts = proof["facts"]
        assert proof["weaker"] == []
        assert facts["effective"] == (["CAP_DAC_READ_SEARCH"] if room == "reader" else [])
        assert facts["no_new_privs"]
        assert facts["seccomp"] == 2
        assert facts["interfaces"] == ["lo"]
        assert {"net", "mnt", "pid", "ipc", "uts"} <= set(facts["separated"])
    assert len({m["facts"]["uids"][0] for m in proofs.values()}) == len({r for r, _ in proofs})


def test_metadata_comes_back(any_engine: Product) -> None:
    source = any_engine.source / "metadata"
    source.mkdir(exist_ok=True)
    for name, mode in {"plain": 0o640, "setuid": 0o4755, "setgid": 0o2755}.items():
        (source / name).write_text(name)
        (source / name).chmod(mode)
        os.utime(source / name, ns=(1, 1_500_000_000_123_456_789))
    os.setxattr(source / "plain", "user.note", b"kept")
    subprocess.run(["setfacl", "-m", "u:70001:r", source / "plain"], check=True, timeout=20)
    subprocess.run(["setcap", "cap_net_raw+ep", source / "setuid"], check=True, timeout=20)
    if not (source / "linked").exists():
        os.link(source / "plain", source / "linked")
        os.symlink("plain", source / "symlink")
        os.mkfifo(source / "fifo")
        os.mknod(source / "device", 0o600 | 0o020000, os.makedev(1, 3))
    assert any_engine("run").code == 0
    target = Path(any_engine.home.base, "back-metadata")
    restored = any_engine.root("restore", "latest", str(source), "--to", str(target))
    assert restored.code == 0, restored
    below = Path(f"{target}{source}")
    for name in ("plain", "setuid", "setgid", "symlink", "fifo", "device"):
        was, now = (source / name).lstat(), (below / name).lstat()
        assert (now.st_mode, now.st_uid, now.st_gid, now.st_rdev) == (
            was.st_mode, was.st_uid, was.st_gid, was.st_rdev,
        ), name  # fmt: skip
    assert (below / "plain").stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert (below / "plain").stat().st_ino == (below / "linked").stat().st_ino
    for name in ("user.note", "system.posix_acl_access"):
        assert os.getxattr(below / "plain", name) == os.getxattr(source / "plain", name)
    capability = "security.capability"
    assert os.getxattr(below / "setuid", capability) == os.getxattr(source / "setuid", capability)


def test_a_dry_run_stores_nothing(any_engine: Product) -> None:
    assert any_engine("run").code == 0
    before = any_engine.newest()["id"]
    done = any_engine("run", "--dry-run")
    assert done.code == 0, done
    assert any_engine.newest()["id"] == before


def test_a_restore_overwrites_nothing_unasked(any_engine: Product) -> None:
    assert any_engine("run").code == 0
    file, target = str(any_engine.source / "file"), f"{any_engine.home.base}/back-twice"
    assert any_engine.root("restore", "latest", file, "--to", target).code == 0
    Path(target + file).write_text("changed since")
    refused = any_engine.root("restore", "latest", file, "--to", target)
    assert refused.code == 6, refused
    assert Path(target + file).read_text() == "changed since"
    assert any_engine.root("restore", "latest", file, "--to", target, "--overwrite").code == 0
    assert Path(target + file).read_text() == "kept\n"


def test_only_root_looks_into_snapshots(any_engine: Product) -> None:
    assert any_engine("run").code == 0
    file = str(any_engine.source / "file")
    assert any_engine("ls", "latest", uid=MEMBER).code == 4
    assert file in any_engine.root("ls", "latest", file).out
    assert file in any_engine.root("find", "file").out


def test_a_stranger_may_ask_for_nothing(any_engine: Product) -> None:
    refused = any_engine("run", uid=STRANGER, group=STRANGER)
    assert refused.code == 4, refused
    assert "group" in refused.err


def test_secrets_and_repository_are_left_out_and_said(any_engine: Product) -> None:
    any_engine.configure(
        f'include = ["{any_engine.source}"]',
        f'include = ["{any_engine.source}", "{any_engine.home.base}/etc",'
        f' "{any_engine.home.base}/repositories"]',
    )
    try:
        done = any_engine("run", "--accept-shrink")
        left_out = any_engine.home.places.secrets
        assert left_out in done.out, done
        listed = any_engine.root("ls", "latest").out
        assert f"{any_engine.home.base}/etc/capkeep.toml" in listed
        assert left_out not in listed
        assert str(any_engine.repository) not in listed
    finally:
        any_engine.configure(
            f', "{any_engine.home.base}/etc", "{any_engine.home.base}/repositories"', ""
        )


def test_a_check_finds_what_is_damaged(any_engine: Product) -> None:
    assert any_engine("run").code == 0
    assert any_engine("check", "--read-data", "100%").code == 0
    pack = max((any_engine.repository / "data").rglob("*"), key=lambda p: p.is_file())
    whole = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    try:
        found = any_engine("check", "--read-data", "100%")
        assert found.code == 13, found
    finally:
        pack.write_bytes(whole)
