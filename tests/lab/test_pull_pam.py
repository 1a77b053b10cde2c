"""A launcher to which the login brings its capability: pam_cap, at a real sshd's."""

import json
from collections.abc import Iterator
from typing import Final

import pytest

from tests.lab import pulled
from tests.lab.pulled import LOGIN, Pair, Pull

pytestmark = pytest.mark.timeout(400)
PULL: Final = Pull("web1", "hosts")
WITH_LAUNCHER: Final = '[host]\nstart = "launcher"\nlauncher-mark = "ei"\n\n'
BRINGS: Final = f"cap_dac_read_search {LOGIN}\nnone *\n"  # capability.conf(5)
CAPABILITIES: Final = "/etc/security/capability.conf"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Pair]:
    with pulled.pair() as made:
        pulled.set_up(made, (PULL,))
        text = made.target.read("/etc/capkeep/capkeep.toml")
        made.target.write("/etc/capkeep/capkeep.toml", WITH_LAUNCHER + text)
        made.target.ok("capkeep", "apply", seconds=120)
        yield made


def test_a_login_that_brings_the_capability_is_all_that_is_needed(hosts: Pair) -> None:
    target, server = hosts.target, hosts.server
    (launcher,) = target.ok("find", "/var/lib/capkeep", "-name", "reader-*", "-type", "f").split()
    assert target.ok("getcap", launcher).split()[-1] == "cap_dac_read_search=ei"

    # Debian's pam_cap is asked at every login, and brings nobody anything as it comes.
    said = hosts.pull()
    assert said.code == 18, said
    assert "has lost CAP_DAC_READ_SEARCH, and no engine was started" in said.out, said
    assert hosts.snapshots(PULL.repository) == []

    target.write(CAPABILITIES, BRINGS)
    said = hosts.pull()
    assert said.code == 0, said
    proofs = [m for m in map(json.loads, said.out.splitlines()) if m["event"] == "proof"]
    engines = [p["facts"] for p in proofs if p["process"] == "target engine"]
    assert {tuple(facts["effective"]) for facts in engines} == {("CAP_DAC_READ_SEARCH",)}, engines
    assert "pam_cap: works" in target.ok("capkeep", "doctor")
    server.ok("capkeep", "restore", "latest", "/srv/data", "--repository", PULL.repository,
              "--to", "/srv/back")  # fmt: skip
    assert pulled.tree(server, "/srv/back/srv/data") == pulled.tree(target, "/srv/data")

    # Whoever is that user in another way has nothing: it is the login that brings it.
    group = target.ok("id", "-g", LOGIN).strip()
    done = target.run("setpriv", f"--reuid={LOGIN}", f"--regid={group}", "--clear-groups",
                      "--inh-caps=-all", launcher)  # fmt: skip
    assert done.code != 0, done
    assert not hosts.busy()
