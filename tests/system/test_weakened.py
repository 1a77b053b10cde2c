"""A room that has less, or more, than it was granted ends before its engine starts, and says why."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from capkeep.kernel.process import spawn
from tests.rooms.house import House, house, wait_for
from tests.system.conftest import Product, Said

ROOT_PATH = {"PATH": "/usr/sbin:/usr/bin"}
ASK_VERSION = '        return libc.syscall("landlock", _CREATE_RULESET, None, 0, _ASK_VERSION)\n'
UNSHARE_NET = '        args.append("--unshare-net")\n'


@pytest.fixture
def home() -> Iterator[House]:
    """An installation with a repository, and its doors closed."""
    with house() as home:
        with home.doors():
            made = Product(home)("init")
            assert made.code == 0, made
        yield home


def engines_proven(said: Said) -> list[str]:
    """The rooms whose engine got as far as being looked at."""
    lines = [json.loads(line) for line in said.out.splitlines()]
    return [m["room"] for m in lines if m["event"] == "proof" and m["process"] == "engine"]


def test_a_capability_that_the_host_has_lost(home: House) -> None:
    doors = spawn(
        ["/usr/bin/setpriv", "--bounding-set=-dac_read_search", *home.command("doors")],
        env=ROOT_PATH,
    )
    try:
        wait_for(Path(home.places.runner_socket).is_socket)
        _refused_for(Product(home), "CAP_DAC_READ_SEARCH")
    finally:
        doors.kill()


def test_a_network_that_is_not_separated(home: House) -> None:
    program = Path(home.package, "capkeep/host/bubblewrap.py")
    text = program.read_text()
    assert text.count(UNSHARE_NET) == 1
    program.write_text(text.replace(UNSHARE_NET, "        pass\n"))
    with home.doors():
        _refused_for(Product(home), "the net namespace is the host's")


def test_a_host_without_landlock_is_told_of_and_backed_up(home: House) -> None:
    program = Path(home.package, "capkeep/kernel/landlock.py")
    text = program.read_text()
    assert text.count(ASK_VERSION) == 1
    program.write_text(text.replace(ASK_VERSION, "        return 0\n"))
    with home.doors():
        done = Product(home)("run")
        assert done.code == 0, done
        assert "offers no Landlock: a hostile engine could" in done.out
        assert re.search(r"landlock +NONE", Product(home)("log", "--proof").out)


def _refused_for(product: Product, reason: str) -> None:
    done = product("run", "--json")
    assert done.code == 18, done
    assert reason in done.out
    assert engines_proven(done) == []
