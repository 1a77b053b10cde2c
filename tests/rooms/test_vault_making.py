"""What a target's engine can do to a repository whose password it keeps: make it, once."""

import configparser
import hashlib
import json
from pathlib import Path

import pytest

from capkeep.engines.borg import ENGINE
from capkeep.plan.model import Access
from capkeep.rooms.rest.directory import DirectoryStore
from capkeep.rooms.rest.making import Making
from capkeep.rooms.rest.names import CONFIG, KEYS, Name
from capkeep.rooms.rest.store import StoreError
from capkeep.rooms.scripts import TOOLS
from tests.engines import borg_programs
from tests.rooms.borgkit import Borg
from tests.rooms.vaultkit import Vault, tree

HOSTILE = str(Path(__file__).with_name("borg_making.py"))
CREATE = ("POST", "/?create=true")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    found = tmp_path / "repository"
    found.mkdir()
    return found


def making(place: Path, *, kept: bool = True, make: bool = True) -> Vault:
    return Vault(str(place), place.parent / "state", kept=kept, make=make)


def test_a_repository_gets_one_key_and_one_config_and_never_another(place: Path) -> None:
    with making(place) as vault:
        assert vault.ask("POST", "/config", b"a config")[0] == 404, "before its key"
        assert vault.ask(*CREATE)[0] == 200
        assert vault.ask("POST", "/config", b"a config")[0] == 404, "before its key"
        for kind in ("data", "index", "snapshots"):
            assert vault.add(kind, b"too early")[0] == 404
        assert vault.add("keys", b"the key")[0] == 200
        assert vault.add("keys", b"another key")[0] == 404
        assert vault.add("keys", b"the key")[0] == 404
        assert vault.ask("POST", "/config", b"a config")[0] == 200
        before = tree(place)
        assert refused(vault)
        key = hashlib.sha256(b"the key").hexdigest()
        assert vault.ask("DELETE", f"/keys/{key}")[0] == 403
        assert tree(place) == before
        assert vault.add("data", b"a pack")[0] == 200, "as ever after"
    before = tree(place)
    with making(place) as vault:
        assert refused(vault)
    assert tree(place) == before
    (key_file,) = (place / "keys").iterdir()
    assert key_file.read_bytes() == b"the key"
    assert (place / "config").read_bytes() == b"a config"


def refused(vault: Vault) -> bool:
    """Whether no key, no config and no repository is taken."""
    found = [
        vault.ask(*CREATE)[0], vault.add("keys", b"one more")[0],
        vault.ask("POST", "/config", b"another")[0],
    ]  # fmt: skip
    assert not {0, 200} & {*found}, found
    return True


@pytest.mark.parametrize("kept, make", [(True, False), (False, False)])
def test_nothing_is_made_unless_it_is_asked_to_be(place: Path, *, kept: bool, make: bool) -> None:
    with making(place, kept=kept, make=make) as vault:
        assert refused(vault)
    assert tree(place) == {}


def test_of_another_repository_the_word_is_unknown_and_ends_all(place: Path) -> None:
    with making(place, kept=False) as vault:
        assert [e["event"] for e in vault.events()] == ["proof", "stored"]
    assert tree(place) == {}


def test_a_key_that_is_left_from_before_is_told_and_stays(place: Path) -> None:
    """Nobody can say whether its config was ever there."""
    with making(place) as vault:
        assert vault.ask(*CREATE)[0] == 200
        assert vault.add("keys", b"the key")[0] == 200
    with making(place) as vault:
        assert vault.add("keys", b"another key")[0] != 200
        assert vault.ask("POST", "/config", b"a config")[0] == 404
        told = [event for event in vault.finish() if event["event"] == "failure"]
    assert [event["failure"] for event in told] == ["refused"]
    assert "a key is there and no config" in str(told[0]["text"])
    assert len(list((place / "keys").iterdir())) == 1


def test_whatever_is_begun_at_the_same_time_there_is_one_key(place: Path, tmp_path: Path) -> None:
    """The first to begin is the only one, in whatever order they end."""
    store = DirectoryStore(str(place), 0, 1)
    store.create()
    one, two, config = Name(KEYS, "1" * 64), Name(KEYS, "2" * 64), Name(CONFIG)
    first, second = Making(store, str(tmp_path)), Making(store, str(tmp_path))
    assert not first.admits(one), "not begun"
    first.begin()
    second.begin()
    assert not second.is_open(), "one session at a time"
    assert not second.admits(one)
    assert first.admits(one)
    assert not first.admits(two)
    assert first.admits(one), "tried again"
    assert not first.admits(config)
    first.ended(one, added=False)
    assert not first.admits(config)
    assert first.admits(one)
    first.ended(one, added=True)
    assert first.admits(config)
    assert not first.admits(config), "while that one is on its way"
    first.ended(config, added=False)
    assert first.admits(config), "tried again"
    assert not first.admits(one)
    first.close()
    second.begin()
    assert second.is_open()
    (place / "keys" / one.hash).write_bytes(b"")
    with pytest.raises(StoreError):
        second.admits(two)
    (place / "config").write_bytes(b"")
    assert not second.is_open()
    assert not second.admits(two)
    second.close()


class Made(Borg):
    """A repository of borg's whose password its target keeps."""

    def vault(self, access: Access = Access.APPEND, *, make: bool = True) -> Vault:
        return Vault(
            str(self.repository), self.base / "state", access, engine=("borg", self.program),
            kept=True, make=make and access is Access.APPEND,
        )  # fmt: skip

    def attack(self, *, make: bool = True) -> dict[str, str]:
        command = ENGINE.snapshots(self.call)
        argv = (*self.call.interpreter, HOSTILE, TOOLS)
        with self.vault(make=make) as vault:
            done = self.on(vault, argv, dict(command.env))
        ends: dict[str, str] = json.loads(done.stdout or b"{}")
        return ends


@pytest.fixture(params=["1.2", "1.4"])
def borg(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return Made(tmp_path, borg_programs()[request.param])


def test_a_hostile_borg_makes_one_repository_with_one_key(borg: Made) -> None:
    assert borg.attack(make=False) == {}, "there is nothing to be opened"
    assert not list(borg.repository.iterdir())
    ends = borg.attack()
    refusals = dict.fromkeys(("again", "second key", "empty key", "key of one that is there"),
                             "PathNotAllowed")  # fmt: skip
    assert ends == refusals | {
        "make": "done", "key": "done", "destroy": "InvalidRPCMethod", "put": "done", "commit": "done",
        "has": "the first key",
    }  # fmt: skip
    assert borg.attack() == {
        "make": "AlreadyExists", "key of one that is there": "PathNotAllowed", "has": "the first key",
    }  # fmt: skip
    assert borg.attack(make=False)["make"] == "PathNotAllowed"


def test_borg_makes_a_repository_that_its_place_can_be_tidied_in(borg: Made) -> None:
    """Neither append-only for all time, nor with a quota for whoever removes."""
    with borg.vault() as vault:
        command = ENGINE.init(borg.call)
        done = borg.on(vault, command.argv, dict(command.env))
        assert done.returncode == 0, done.stderr.decode()
    found = configparser.ConfigParser(interpolation=None)
    found.read(borg.repository / "config")
    said = found["repository"]
    assert (said["append_only"], said["storage_quota"]) == ("0", "0")
    borg.back_up()
    (snapshot,) = borg.snapshots()
    borg.admin(ENGINE.forget(borg.call, (snapshot.word,)))
    assert borg.snapshots() == ()
