"""Snapshots are copied into another repository, by a room that can remove nothing from either."""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.records.locks import Holder, JobLock, copies_of
from tests.engines import restic_programs
from tests.rooms import h2
from tests.rooms.house import house
from tests.system.conftest import SECONDS, Product, Said
from tests.system.test_upkeep import steps, told

SECOND = """
[repositories.second]
engine = "restic"
location = "{base}/repositories/second"
password = {{ file = "{base}/etc/secrets/second" }}
"""
COPIES = '\n[jobs.job.copies]\ninto = ["second"]\n'
PASSWORDS = {"repo": "a password", "second": "another one"}


def copied(product: Product, program: Path | None = None) -> Product:
    """Give the installation a second repository, and its job copies."""
    base = product.home.base
    secret = Path(base, "etc/secrets/second")
    secret.write_text(PASSWORDS["second"])
    secret.chmod(0o600)
    path = Path(base, "etc/capkeep.toml")
    text = path.read_text()
    if program:
        text = text.replace(str(restic_programs()["0.14"]), str(program))
    # What is copied into comes first: what it is made like is made before it all the same.
    path.write_text(SECOND.format(base=base) + text + COPIES)
    product.home.plan = product.home.compiled()
    product.home.apply(product.home.plan)
    return product


@pytest.fixture(params=["0.14", "0.19"])
def pair(request: pytest.FixtureRequest) -> Iterator[Product]:
    with house() as home:
        product = copied(Product(home), restic_programs()[request.param])
        with home.doors():
            made = product("init")
            assert made.code == 0, made
            yield product


def listed(product: Product) -> dict[str, list[dict[str, object]]]:
    found = json.loads(product("snapshots", "--json").out)
    return {one["repository"]: one["snapshots"] for one in found}


def polynomial(product: Product, name: str) -> object:
    """By which a repository cuts files."""
    path = product.repository.with_name(name)
    done = subprocess.run(
        [str(restic_programs()["0.19"]), "--repo", path, "--no-cache", "--no-lock", "cat", "config"],
        env={"PATH": "/usr/bin", "RESTIC_PASSWORD": PASSWORDS[name]},
        capture_output=True, text=True, timeout=SECONDS, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)["chunker_polynomial"]


def told_at_once(product: Product) -> None:
    """Have a copier tell of every step how far it is."""
    path = Path(product.home.package, "capkeep/rooms/copier.py")
    path.write_text(
        path.read_text().replace("TELL_SECONDS: Final = 10.0", "TELL_SECONDS: Final = 0.0")
    )


def part(said: Said) -> dict[str, object]:
    (found,) = [m for m in told(said, "step-end") if m["kind"] == "copy"]
    return found


def test_what_a_job_has_kept_is_copied_and_comes_back_from_there(pair: Product) -> None:
    assert polynomial(pair, "repo") == polynomial(pair, "second")
    told_at_once(pair)
    done = pair("run", "--json")
    assert done.code == 0, done.out[-3000:]
    assert list(steps(done)) == ["backup", "copy"]
    assert part(done)["outcome"] == "complete"
    assert part(done)["repository"] == "second"
    words = [str(m["text"]) for m in told(done, "message") if "copier" in str(m["room"])]
    assert words[-1] == "1 of 1 snapshots are copied"
    assert any("0 of 1 snapshots are copied, 100.00% of" in text for text in words), words
    proofs = {m["process"]: m for m in told(done, "proof") if "copier" in str(m["room"])}
    assert {"room", "engine"} <= set(proofs)
    for proof in proofs.values():
        facts = proof["facts"]
        assert isinstance(facts, dict)
        assert (facts["effective"], facts["interfaces"], proof["weaker"]) == ([], ["lo"], [])
    vaults = {m["process"]: m["room"] for m in told(done, "proof") if "vault" in str(m["room"])}
    assert vaults == {"vault": "vault-second", "origin": "vault-repo"}
    (pair.source / "file").write_text("kept again\n")
    again = pair("run", "--json")
    assert "1 snapshots were copied; 2 of the 2 in repo" in str(part(again)["text"]), again
    found = listed(pair)
    assert [s["original"] for s in found["second"]] == [s["id"] for s in found["repo"]]
    assert [s["tags"] for s in found["second"]] == [s["tags"] for s in found["repo"]]
    nothing = pair("copy", "--json")
    assert nothing.code == 0, nothing
    assert str(part(nothing)["text"]).startswith("0 snapshots were copied; 2 of the 2"), nothing
    target = f"{pair.home.base}/back"
    words = ("restore", "latest", str(pair.source), "--repository", "second", "--to", target)
    restored = pair.root(*words)
    assert restored.code == 0, restored
    assert Path(f"{target}{pair.source}/file").read_text() == "kept again\n"
    assert pair("check", "second", "--read-data", "100%").code == 0
    # With rules only what they would keep is copied; and one that is not there is said to be so.
    pair.configure(
        COPIES, COPIES + "after-backup = false\nschedule = ['2199-01-01']\nkeep-last = 1\n"
    )
    for number in range(2):
        (pair.source / "file").write_text(f"{number}")
        assert pair("run").code == 0
    there = listed(pair)
    would = pair("copy", "--dry-run", "--json")
    assert would.code == 0, would
    (named,) = [str(m["text"]) for m in told(would, "message") if "would" in str(m["text"])]
    assert named.startswith(f"would be copied: {str(there['repo'][-1]['id'])[:8]} of 20"), named
    assert "1 snapshots would be copied, of 1 that are wanted of repo" in would.out
    assert listed(pair)["second"] == there["second"]
    assert json.loads(pair("status", "--json").out)["copies"][0]["text"].startswith("0 snapshots")
    done = pair("copy", "--json")
    assert "1 snapshots were copied; 1 of the 4 in repo" in str(part(done)["text"]), done
    pair.repository.with_name("second").rename(pair.repository.with_name("away"))
    gone = pair("copy", "--json")
    assert gone.code != 0, gone
    assert part(gone)["outcome"] == "failed"
    assert not pair.repository.with_name("second").exists()
    status = pair("status")
    assert status.code == 1, status
    assert "job into second: failed: the copy" in status.out, status
    assert pair("status", "--nagios").code == 2
    pair.repository.with_name("away").rename(pair.repository.with_name("second"))
    assert pair("copy").code == 0
    status = pair("status", "--json")
    assert status.code == 0, status
    (one,) = json.loads(status.out)["copies"]
    assert (one["job"], one["repository"], one["passed"]) == ("job", "second", True)


def test_a_copy_that_takes_days_stops_no_backup(product: Product) -> None:
    copied(product)
    assert product("init").code == 0
    product.configure("[jobs.job]", '[jobs.job]\nschedule = ["2199-01-01"]')
    # What its timer starts must end with the backup, or it would not start the next one.
    due = product("due", "job")
    assert due.code == 0, due
    assert "copy" not in due.out, due
    until = time.monotonic() + SECONDS
    while "copied" not in product("status").out:
        assert time.monotonic() < until, product("history").out
        time.sleep(0.5)
    records = product.home.plan.places.records
    with JobLock(records, copies_of("job")) as lock:  # as a copy holds it that is under way
        lock.acquire(Holder(copies_of("job"), "run-1", 0, "root", 1_795_000_000.0))
        done = product("run", "--json")
        assert done.code == 0, done
        assert "copy" not in steps(done)
        assert "copies are still under way (run run-1)" in done.out
        refused = product("copy")
        assert refused.code == 4, refused
        assert "copying of job job is being run already, by root" in refused.err
    with JobLock(records, "job") as lock:  # nor does a backup stop copies
        lock.acquire(Holder("job", "run-2", 0, "root", 1_795_000_000.0))
        done = product("copy", "--json")
        assert done.code == 0, done
        assert "1 snapshots were copied; 2 of the 2" in str(part(done)["text"]), done


HOSTILE = """

import os, socket, sys
sys.path.insert(0, PACKAGE)
if "copy" not in sys.argv:
    os.execv("/usr/bin/restic", ["restic", *sys.argv[1:]])
"""  # and then what tests speak to a vault with

ATTACK = """

answers = []
for fd in (3, 6):
    with socket.socket(fileno=fd) as handover, Client(handover) as client:
        import json
        for kind in ("snapshots", "index", "data", "keys", "locks"):
            status, body = client.ask("GET", f"/{kind}/")
            for name in json.loads(body):
                path = f"/{kind}/{name if isinstance(name, str) else name['name']}"
                answers.append((fd, "DELETE", kind, client.ask("DELETE", path)[0]))
                answers.append((fd, "POST", kind, client.ask("POST", path, b"x")[0]))
        answers.append((fd, "DELETE", "config", client.ask("DELETE", "/config")[0]))
        for kind in ("snapshots", "data"):
            content = kind.encode()
            import hashlib
            name = hashlib.sha256(content).hexdigest()
            answers.append((fd, "ADD", kind, client.ask("POST", f"/{kind}/{name}", content)[0]))
for family in (socket.AF_UNIX, socket.AF_INET):
    try:
        socket.socket(family)
        answers.append(("socket", family))
    except OSError:
        pass
for path in SECRETS:
    try:
        open(path).close()
        answers.append(("read", path))
    except OSError:
        pass
print(json.dumps(answers), file=sys.stderr)
sys.exit(1)
"""


def objects(root: Path) -> dict[str, str]:
    """All that a repository holds, by name; locks apart, which come and go."""
    files = (p for p in root.rglob("*") if p.is_file() and p.parent.name != "locks")
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_hostile_engine_that_copies_removes_nothing_from_either(product: Product) -> None:
    copied(product)
    assert product("init").code == 0
    assert product("run").code == 0
    base = product.home.base
    secrets = [f"{base}/etc/secrets/repo", str(product.source / "file"), str(product.repository)]
    evil = Path(base, "evil")
    spoken = Path(h2.__file__).read_text()
    evil.write_text(
        "#!/usr/bin/python3 -I\n"
        + HOSTILE.replace("PACKAGE", repr(product.home.package)).lstrip()
        + spoken
        + ATTACK.replace("SECRETS", repr(secrets))
    )
    evil.chmod(0o755)
    (product.source / "file").write_text("something to copy\n")
    product.configure(COPIES, COPIES + "after-backup = false\nschedule = ['2199-01-01']\n")
    assert product("run").code == 0
    product.configure(str(restic_programs()["0.14"]), str(evil))
    second = product.repository.with_name("second")
    before = objects(product.repository), objects(second)
    done = product("copy", "--json")
    assert done.code != 0, done
    answers = json.loads(next(
        line for line in str(part(done)["engine_words"]).splitlines() if line.startswith("[[")
    ))  # fmt: skip
    assert not [a for a in answers if a[0] in ("socket", "read")], answers
    statuses = {(a[0], a[1], a[2]): a[3] for a in answers}
    for fd in (3, 6):
        for kind in ("snapshots", "index", "data", "keys", "config"):
            assert statuses[fd, "DELETE", kind] == 403, (fd, kind, statuses)
    assert (statuses[3, "ADD", "snapshots"], statuses[6, "ADD", "snapshots"]) == (200, 403)
    assert objects(product.repository) == before[0], "what is copied from stays as it was"
    now = objects(second)
    assert {k: now[k] for k in before[1]} == before[1], "and of the other nothing is lost"
