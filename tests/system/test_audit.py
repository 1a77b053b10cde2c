"""`capkeep audit` where `capkeep doors` starts the rooms: every room is started and looked at."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.test_apply import PREFIX, Host, applied_host, mode
from tests.system.test_user_mode import User
from tests.system.test_user_mode import user as user

FINDINGS = 7
UNSHARE_NET = '        args.append("--unshare-net")\n'


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with applied_host() as host:
        yield host


def told(host: Host) -> dict[str, list[dict[str, object]]]:
    done = host("audit", "--json")
    assert done.code in (0, FINDINGS), done
    said = json.loads(done.out)
    assert said["exit_code"] == done.code
    assert bool(said["findings"]) == (done.code == FINDINGS)
    assert isinstance(said, dict)
    return said


def found(host: Host, what: object) -> list[tuple[str, str]]:
    """Kind and mending of each finding about a thing; there is no other."""
    findings = told(host)["findings"]
    assert {f["what"] for f in findings} == {str(what)}, findings
    return [(str(f["kind"]), str(f["mend"])) for f in findings]


@contextlib.contextmanager
def changed(path: Path, old: str, new: str) -> Iterator[None]:
    before = path.read_text()
    assert before.count(old) == 1
    path.write_text(before.replace(old, new))
    try:
        yield
    finally:
        path.write_text(before)


def test_a_host_as_planned_has_no_findings(host: Host) -> None:
    said = told(host)
    assert said["findings"] == []
    processes = {(r["room"], r["process"]) for r in said["rooms"]}
    engines = [r.partition(" ")[0] for r, p in processes if p == "engine"]
    assert sorted(engines) == ["keeper-repo", "reader-job-repo", "restorer-repo", "viewer-repo"]
    assert ("runner", "room") in processes
    assert ("vault-repo for reader-job-repo", "vault") in processes
    reader = next(
        r for r in said["rooms"] if (r["room"], r["process"]) == ("reader-job-repo", "engine")
    )
    granted, facts = reader["granted"], reader["found"]
    assert isinstance(granted, dict) and isinstance(facts, dict)
    assert granted["capabilities"] == facts["effective"] == ["CAP_DAC_READ_SEARCH"]
    assert set(facts["uids"]) == {granted["uid"]}
    assert any("`capkeep doors` runs as root" in str(text) for text in said["exceptions"])


def test_looking_changes_nothing(host: Host) -> None:
    def tree() -> dict[str, tuple[int, int, int, float]]:
        states = {p: p.lstat() for p in host.base.rglob("*") if host.package not in p.parents}
        return {
            str(p): (s.st_mode, s.st_uid, s.st_size, s.st_mtime)
            for p, s in states.items()
            if not {"cache", "run", "vault"} & {*p.parts}
        }

    before = tree()
    told(host)
    assert tree() == before


def test_only_root_audits(host: Host) -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65000", "--regid=65000", "--clear-groups", "/usr/bin/python3", "-P", "-c",
         "from capkeep.cli.main import main; main(['audit'])"],
        env={"PATH": "/usr/bin", "PYTHONPATH": str(host.package.parent),
             "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=60, cwd="/", check=False,
    )  # fmt: skip
    assert "only root can look at every room" in done.stderr


def test_a_secret_that_others_can_read(host: Host) -> None:
    secret = host.base / "etc/secrets/repo"
    with mode(secret, 0o640):
        assert found(host, secret) == [("secret", f"chown root:root {secret}; chmod 600 {secret}")]


def test_a_directory_with_a_wrong_mode(host: Host) -> None:
    cache = host.base / "cache/keeper-repo"
    with mode(cache, 0o755):
        assert found(host, cache) == [("drift", "capkeep apply")]


def test_an_engine_that_others_can_change(host: Host) -> None:
    with mode(host.restic, 0o757):
        assert found(host, host.restic) == [("program", f"chmod go-w {host.restic}")]


def test_a_leftover_file_capability(host: Host) -> None:
    subprocess.run(["setcap", "cap_dac_read_search=ep", host.restic], check=True, timeout=20)
    try:
        (finding,) = told(host)["findings"]
    finally:
        subprocess.run(["setcap", "-r", host.restic], check=True, timeout=20)
    assert (finding["kind"], finding["mend"]) == ("program", f"setcap -r {host.restic}")
    assert "CAP_DAC_READ_SEARCH" in str(finding["text"])


def test_a_program_that_runs_as_its_owner(host: Host) -> None:
    with mode(host.restic, 0o4755):
        assert found(host, host.restic) == [("program", f"chmod u-s,g-s {host.restic}")]


def test_a_configuration_with_mistakes_and_one_that_is_newer(host: Host) -> None:
    with changed(host.config, "[jobs.job]", "[jobs.job]\nexlude = []"):
        said = told(host)
        (finding,) = said["findings"]
        assert finding["kind"] == "configuration"
        assert str(finding["what"]).startswith(f"{host.config}:")
        assert finding["mend"] == "did you mean exclude?"
        assert said["rooms"], "the plan that was applied is looked at all the same"
    with changed(host.config, "[jobs.job]", '[jobs.job]\nexclude = ["/x"]'):
        (finding,) = told(host)["findings"]
        assert (finding["kind"], finding["mend"]) == ("plan", "capkeep apply")
        assert '+   "exclude"' in str(finding["detail"]) or "/x" in str(finding["detail"])


def test_a_user_that_is_gone(host: Host) -> None:
    name = f"{PREFIX}-viewer"
    passwd = Path("/etc/passwd")
    line = next(
        li for li in passwd.read_text().splitlines(keepends=True) if li.startswith(name + ":")
    )
    subprocess.run(["usermod", "--login", f"{name}x", name], check=True, timeout=20)
    try:
        assert found(host, f"user {name}") == [("drift", "capkeep apply")]
    finally:
        subprocess.run(["usermod", "--login", name, f"{name}x"], check=True, timeout=20)
    assert line in passwd.read_text()


def test_without_a_plan_there_is_one_finding(host: Host) -> None:
    plan = host.base / "state/plan.json"
    aside = plan.with_name("aside")
    plan.rename(aside)
    try:
        assert found(host, plan) == [("plan", "capkeep apply")]
    finally:
        aside.rename(plan)


def test_a_room_that_is_weaker_than_its_grant(host: Host) -> None:
    """bubblewrap is told not to separate the network: each room with an engine proves it."""
    with changed(host.package / "host/bubblewrap.py", UNSHARE_NET, "        pass\n"):
        said = told(host)
    weak = {str(f["what"]) for f in said["findings"] if f["kind"] == "weaker"}
    assert weak >= {"runner (room)", "reader-job-repo (room)", "keeper-repo (room)"}
    assert {f["kind"] for f in said["findings"]} == {"weaker"}
    assert not [r for r in said["rooms"] if r["process"] == "engine"], "no engine was started"
    assert any("net namespace is the host's" in str(f["text"]) for f in said["findings"])


def test_a_room_that_proves_nothing(host: Host) -> None:
    proof = '"facts": codec.to_plain(facts),'
    with changed(host.package / "rooms/base.py", proof, '"facts": {},'):
        said = told(host)
    assert {(f["kind"], f["what"]) for f in said["findings"]} == {
        ("probe", "reader-job-repo"), ("probe", "keeper-repo"), ("probe", "viewer-repo"),
        ("probe", "restorer-repo"),
    }  # fmt: skip
    assert all("it proves nothing" in str(f["text"]) for f in said["findings"])


def test_an_engine_that_is_gone_is_told(host: Host) -> None:
    aside = host.restic.with_name("aside")
    host.restic.rename(aside)
    try:
        findings = told(host)["findings"]
    finally:
        aside.rename(host.restic)
    assert any("is not there; install it again" in str(f["text"]) for f in findings)


def test_in_user_mode_ones_own_rooms_are_looked_at(user: User) -> None:
    done = user("audit", "--json")
    said = json.loads(done.out)
    assert {r["room"] for r in said["rooms"] if r["process"] == "engine"} == {
        "reader-own-repo", "keeper-repo", "viewer-repo", "restorer-repo",
    }  # fmt: skip
    assert said["findings"] == []
