"""`capkeep key`, from root's terminal to the repository, with every engine."""

import base64
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from capkeep.plan.exported import notes
from tests.rooms.house import MEMBER, wait_for
from tests.system.conftest import SECONDS, Product
from tests.system.scenes import locks, random_file, start
from tests.system.test_trouble import engines

QUICK = 1 << 10  # scrypt's cost of a key that capkeep makes


def keys(product: Product) -> list[dict[str, object]]:
    done = product.root("key", "list", "repo", "--json")
    assert done.code == 0, done
    found = json.loads(done.out)
    assert isinstance(found, list)
    return found


def secret(product: Product) -> Path:
    return Path(product.home.base, "etc/secrets/repo")


def rotation(product: Product) -> set[str]:
    """What a rotation has left."""
    folder = Path(product.home.places.state, "keys")
    return {p.name for p in folder.iterdir() if p.suffix != ".lock"} if folder.exists() else set()


def with_input(product: Product, text: str, *words: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        product.home.command(*words), input=text.encode(), capture_output=True, cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin"}, timeout=SECONDS, check=False,
    )  # fmt: skip


def test_another_key_is_added_tried_listed_and_removed(any_engine: Product) -> None:
    before = keys(any_engine)
    assert [k["current"] for k in before].count(True) == 1
    added = with_input(any_engine, "of somebody else\n", "key", "add", "repo", "--json")
    assert added.returncode == 0, added
    new = json.loads(added.stdout)["key"]
    assert {k["id"] for k in keys(any_engine)} - {k["id"] for k in before} == {new}
    again = with_input(any_engine, "of somebody else\n", "key", "add", "repo", "--json")
    assert json.loads(again.stdout)["key"] == new, "added once is enough"
    own = secret(any_engine).read_text()
    secret(any_engine).write_text("of somebody else\n")
    assert any_engine("run").code == 0
    secret(any_engine).write_text(own)
    in_use = next(str(k["id"]) for k in before if k["current"])
    assert any_engine.root("key", "remove", "repo", in_use[:8]).code != 0
    assert any_engine.root("key", "remove", "repo", new[:8]).code == 0
    assert keys(any_engine) == before
    assert any_engine("run").code == 0


def test_a_rotation_leaves_one_key_that_is_where_the_configuration_says(
    any_engine: Product,
) -> None:
    before, (old,) = secret(any_engine).read_text(), keys(any_engine)
    done = any_engine.root("key", "rotate", "repo")
    assert done.code == 0, done
    after = secret(any_engine).read_text()
    assert after != before
    assert len(after) > 40
    assert after.strip() not in done.out + done.err
    assert stat.S_IMODE(secret(any_engine).stat().st_mode) == 0o600
    (new,) = keys(any_engine)
    assert new["id"] != old["id"]
    assert rotation(any_engine) == set()
    assert any_engine("run").code == 0
    assert any_engine("check").code == 0
    secret(any_engine).write_text(before)
    assert any_engine("run").code == 12
    secret(any_engine).write_text(after)


def stored(product: Product) -> list[dict[str, object]]:
    """The keys as they lie in the repository."""
    return [json.loads(p.read_bytes()) for p in (product.repository / "keys").iterdir()]


def made_anew(product: Product) -> None:
    for entry in product.repository.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert product("init").code == 0


def opened(product: Product, password: str) -> int:
    """What restic by hand says to a password."""
    program = product.home.plan.repository("repo").program
    return subprocess.run(
        [program, "--no-cache", "-r", product.repository, "snapshots", "--json"],
        env={"RESTIC_PASSWORD": password, "PATH": "/usr/bin"}, capture_output=True,
        timeout=60, check=False,
    ).returncode  # fmt: skip


def test_a_password_that_nobody_guesses_opens_a_new_repository_at_once(
    any_engine: Product,
) -> None:
    secret(any_engine).write_text("of a person\n")
    made_anew(any_engine)
    (slow,) = stored(any_engine)
    assert int(str(slow["N"])) > QUICK, "a person's password is slow to try"
    made = base64.b64encode(os.urandom(32)).decode()
    secret(any_engine).write_text(f"{made}\n")
    made_anew(any_engine)
    (quick,) = stored(any_engine)
    assert (quick["N"], quick["r"], quick["p"]) == (QUICK, 8, 1)
    assert any_engine("run").code == 0
    assert any_engine("check").code == 0
    assert opened(any_engine, made) == 0
    for wrong in (made.swapcase(), "of a person", ""):
        assert opened(any_engine, wrong) != 0
    assert made not in json.dumps(quick)


def test_a_rotation_makes_a_repository_quick_that_was_slow(any_engine: Product) -> None:
    assert any_engine.root("key", "rotate", "repo").code == 0
    (quick,) = stored(any_engine)
    assert quick["N"] == QUICK
    assert opened(any_engine, secret(any_engine).read_text().strip()) == 0
    assert any_engine("run").code == 0
    added = with_input(any_engine, "of a person\n", "key", "add", "repo")
    assert added.returncode == 0, added
    assert sorted(int(str(k["N"])) > QUICK for k in stored(any_engine)) == [False, True]


def test_a_rotation_leaves_no_key_that_the_old_password_opens(product: Product) -> None:
    """An `init` that is killed between its two keys leaves both."""
    file = secret(product)
    old = file.read_text().strip()
    there = set((product.repository / "keys").iterdir())
    subprocess.run(
        [product.home.plan.repository("repo").program, "--no-cache", "-r", product.repository,
         "key", "add", f"--new-password-file={file}"],
        env={"RESTIC_PASSWORD": old, "PATH": "/usr/bin"}, check=True, timeout=60,
    )  # fmt: skip
    (first,), (second,) = there, set((product.repository / "keys").iterdir()) - there
    os.chown(second, first.stat().st_uid, first.stat().st_gid)
    assert product.root("key", "rotate", "repo").code == 0
    assert len(stored(product)) == 1
    assert opened(product, old) != 0
    assert product("run").code == 0


def test_only_root_works_on_keys(any_engine: Product) -> None:
    for verb in ("list", "export", "rotate"):
        done = any_engine("key", verb, "repo", uid=MEMBER)
        assert done.code == 4, done
    home = any_engine.home
    for action in ("keys", "key", "rotate"):
        said = home.ask({"action": action, "repositories": ["repo"], "options": {"what": "list"}})
        assert said[-1]["exit_code"] == 2, said


def test_the_runner_cannot_ask_the_keeper_for_keys(any_engine: Product) -> None:
    """As the runner's user, on the keeper's own door."""
    import socket

    from capkeep.plan.model import RoomKind
    from capkeep.rooms.protocol import Channel
    from tests.rooms.house import UIDS, as_user

    door = any_engine.home.plan.room("keeper-repo").door
    assert door is not None
    with as_user(UIDS[RoomKind.RUNNER]):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(30)
        sock.connect(door.path)
    with Channel(sock) as channel:
        channel.send({"action": "keys", "options": {"what": "list"}})
        result = list(channel)[-1]
    assert result["failure"] == "refused"
    assert "only root" in str(result["text"])


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
def test_a_rotation_may_be_killed_at_any_moment(product: Product, share: float) -> None:
    """Whenever it is killed, with its rooms, backups go on; the next one finishes it."""
    began = time.monotonic()
    assert product.root("key", "rotate", "repo").code == 0
    whole = time.monotonic() - began
    (old,) = keys(product)
    before = secret(product).read_text()
    child = subprocess.Popen(
        product.home.command("key", "rotate", "repo"), cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        child.wait(whole * share)
    except subprocess.TimeoutExpired:
        child.kill()  # what it has started ends with it
        child.wait(20)
    done = product("run")
    assert done.code == 0, (done, rotation(product))
    if child.returncode:
        finished = product.root("key", "rotate", "repo")
        assert finished.code == 0, finished
    assert rotation(product) == set()
    (new,) = keys(product)
    assert new["id"] != old["id"]
    assert secret(product).read_text() != before
    assert product("run").code == 0


@pytest.mark.parametrize("left", ["new", "new+key", "new+old", "new+old+file", "old", "old-key"])
def test_what_a_cut_off_rotation_left_is_gone_on_with(product: Product, left: str) -> None:
    """Every state between two writes of it, made by hand."""
    folder = Path(product.home.places.state, "keys")
    assert product.root("key", "list", "repo").code == 0  # makes the folder
    (old,) = keys(product)
    files = {"new": folder / "repo.new", "old": folder / "repo.old"}
    if "new" in left:
        files["new"].write_text("the new one\n")
    if left != "new":
        added = with_input(product, "the new one\n", "key", "add", "repo")
        assert added.returncode == 0, added
    if "old" in left:
        files["old"].write_text("a password\n")
    if left in ("new+old+file", "old", "old-key"):
        secret(product).write_text("the new one\n")
    if left == "old-key":
        assert product.root("key", "remove", "repo", str(old["id"])[:8]).code == 0
    assert product("run").code == 0
    refused = with_input(product, "a third\n", "key", "rotate", "repo", "--password-file", "-")
    assert refused.returncode == 4, refused
    done = product.root("key", "rotate", "repo")
    assert done.code == 0, done
    assert secret(product).read_text() == "the new one\n"
    (new,) = keys(product)
    assert new["id"] != old["id"]
    assert rotation(product) == set()
    assert product("run").code == 0


def test_a_rotation_does_not_lose_a_password_that_came_in_between(product: Product) -> None:
    folder = Path(product.home.places.state, "keys")
    assert product.root("key", "list", "repo").code == 0  # makes the folder
    (folder / "repo.new").write_text("the new one\n")
    (folder / "repo.old").write_text("a password\n")
    assert with_input(product, "a third\n", "key", "add", "repo").returncode == 0
    secret(product).write_text("a third\n")
    done = product.root("key", "rotate", "repo")
    assert done.code == 4, done
    assert "neither the old nor the new" in done.err
    assert secret(product).read_text() == "a third\n"
    secret(product).write_text("a password\n")
    done = product.root("key", "rotate", "repo")
    assert done.code == 12, "and none that does not open the repository takes its place"
    assert secret(product).read_text() == "a password\n"


def test_the_old_key_stays_while_a_backup_is_under_way(product: Product) -> None:
    for number in range(3):
        random_file(product.source / str(number), 40)
    run = start(product, "run", "--json")
    try:
        wait_for(lambda: bool(locks(product)))
        os.kill(engines(product)[0], signal.SIGSTOP)
        done = product.root("key", "rotate", "repo")
        assert done.code == 11, done
        assert rotation(product) == {"repo.old"}
        assert len(keys(product)) == 2
    finally:
        os.kill(engines(product)[0], signal.SIGCONT)
        run.communicate(timeout=60)
    assert run.returncode == 0, "the key that it began with opened the repository"
    assert product.root("key", "rotate", "repo").code == 0
    assert len(keys(product)) == 1
    assert rotation(product) == set()


def test_a_chosen_password_and_its_mistakes(product: Product) -> None:
    for text in ("", "two\nlines\n", "a password\n"):
        done = with_input(product, text, "key", "rotate", "repo", "--password-file", "-")
        assert done.returncode in (2, 4), done
        assert secret(product).read_text() == "a password\n"
    done = with_input(product, "chosen\n", "key", "rotate", "repo", "--password-file", "-")
    assert done.returncode == 0, done
    assert secret(product).read_text() == "chosen\n"
    assert product("run").code == 0


def test_a_password_that_is_printed_cannot_be_rotated(product: Product) -> None:
    file = f'password = {{ file = "{product.home.base}/etc/secrets/repo" }}'
    product.configure(file, 'password = { command = ["/usr/bin/echo", "a password"] }')
    done = product.root("key", "rotate", "repo")
    assert done.code == 4, done
    assert "key add" in done.err
    assert product.root("key", "list", "repo").code == 0


def test_a_password_whose_file_is_another_secret_too_is_not_rotated(product: Product) -> None:
    line = f'password = {{ file = "{secret(product)}" }}'
    product.configure(line, f'{line}\ncredentials.TOKEN = {{ file = "{secret(product)}" }}')
    before = secret(product).read_text()
    done = product.root("key", "rotate", "repo")
    assert done.code != 0, done
    assert "is a secret of vault-repo too" in done.err
    assert (secret(product).read_text(), rotation(product)) == (before, set())


def test_an_export_is_all_that_an_empty_machine_needs(product: Product) -> None:
    assert product("run").code == 0
    file = Path(product.home.base, "sheet")
    done = product.root("key", "export", "repo", "--output", str(file))
    assert done.code == 0, done
    assert "a password" not in done.out + done.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert "a password" in text
    command = next(x for x in text.splitlines() if x.endswith("snapshots")).split()
    plain = json.loads(product.root("--json", "key", "export", "repo", "--force").out)
    assert command == ["restic", "-r", str(product.repository), "snapshots"]
    program = product.home.plan.repository("repo").program
    found = subprocess.run(
        [program, "--no-cache", *command[1:], "--json"],
        env={"RESTIC_PASSWORD": plain["password"], "PATH": "/usr/bin"}, capture_output=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert len(json.loads(found.stdout)) == 1


def test_an_export_goes_nowhere_by_accident(product: Product) -> None:
    done = product.root("key", "export", "repo")
    assert done.code == 4, done
    assert "a password" not in done.out + done.err
    there = Path(product.home.base, "there")
    there.write_text("mine")
    assert product.root("key", "export", "repo", "--output", str(there)).code == 4
    assert there.read_text() == "mine"
    assert not Path(notes(product.home.places)).exists()
    assert product.root("key", "export", "repo", "--output", str(there), "--force").code == 0


def test_everybody_is_reminded_until_it_was_exported(product: Product) -> None:
    ran, status = product("run"), product("status")
    for said in (ran.err, status.out):
        assert "the key of repository repo was never exported" in said
        assert "capkeep key export repo" in said
    assert json.loads(product("status", "--json").out)["keys_not_exported"] == ["repo"]
    file = f"{product.home.base}/sheet"
    assert product.root("key", "export", "repo", "--output", file).code == 0
    assert "exported" not in product("run").err + product("status").out
    assert json.loads(product("status", "--json").out)["keys_not_exported"] == []
    assert product.root("key", "rotate", "repo").code == 0
    assert "never exported" in product("run").err, "the new one was not"
    product.configure("[repositories.repo]", "[repositories.repo]\nkey-exported = true")
    assert "exported" not in product("run").err + product("status").out
