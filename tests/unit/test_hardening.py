"""Which protections a unit gets, by what its room may do and by what this systemd can."""

from capkeep.host.hardening import Host, ids
from capkeep.plan.compile import MIRROR_CAPABILITIES
from capkeep.plan.model import Grant

VAULT = Grant("capkeep-vault", 900, 900, write=("/srv/mirror",))


def test_a_room_that_gives_other_hosts_files_to_their_owners_has_every_id() -> None:
    owning = VAULT._replace(capabilities=MIRROR_CAPABILITIES)
    assert owning.changes_owners
    for version, pulls, expected in (
        (252, True, []),
        (257, False, ["PrivateUsers=identity"]),
        (257, True, []),  # it maps the first 65536 only
        (258, True, ["PrivateUsers=full"]),
    ):
        host = Host(version, {}, large_ids=False, pulls=pulls)
        assert list(ids(owning, host)) == expected
    assert list(ids(VAULT, Host(257, {}, large_ids=False, pulls=True))) == ["PrivateUsers=identity"]
