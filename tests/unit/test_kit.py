"""What a recovery kit writes down of a repository, and what it leaves out on purpose."""

import re
import tomllib

from capkeep.config.syntax import NAME_PATTERN
from capkeep.plan.model import Repository
from capkeep.report.key_sheet import Sheet
from capkeep.report.kit import Kit, configuration, script

MIRROR = Repository(
    "mirror", "rdiff-backup", "/srv/mirror", "/usr/bin/rdiff-backup", owners="names"
)
FAR = Repository(
    "far", "restic", "sftp:a@b:/c", "/usr/bin/restic", environment=(("X", 'a "b"'),),
    options=(("known-hosts", "/etc/capkeep/known_hosts"), ("port", "2222"), ("rclone", "/x")),
    engine_network=True,
)  # fmt: skip
SHEET = Sheet(
    FAR,
    "restic 0.18.0",
    "ab",
    "lost",
    "END-OF-FILE\nit's",
    (("identity", "a key\n"), ("X_ID", "x")),
)
KIT = Kit(
    "lost",
    "0.1",
    ("capkeep",),
    "/etc/capkeep",
    (SHEET,),
    (MIRROR,),
    (),
    (("capkeep.toml", "x = 1\n"),),
)
# Of another machine's programs, of what a restore has no use for, and of what nobody here can open.
LEFT_OUT = {
    "name", "program", "environment_folder", "key_exported", "pulled_by", "quota_bytes",
    "target_keeps_password",
}  # fmt: skip


def test_every_setting_of_a_repository_is_in_it() -> None:
    found = tomllib.loads(configuration(KIT))["repositories"]
    assert found["mirror"] == {
        "engine": "rdiff-backup", "location": "/srv/mirror", "owners": "names",
    }  # fmt: skip
    far = found["far"]
    assert far["environment"] == {"X": 'a "b"'}
    assert far["options"] == {
        "identity": {"file": "/etc/capkeep/secrets/far.identity"},
        "known-hosts": "/etc/capkeep/known_hosts", "port": 2222,
    }  # fmt: skip
    assert far["credentials"] == {"X_ID": {"file": "/etc/capkeep/secrets/far.X_ID"}}
    written = {key.replace("-", "_") for one in found.values() for key in one}
    assert {*Repository._fields} - written == LEFT_OUT - {"key_exported"}


def test_repositories_of_targets_get_names_that_can_be_written() -> None:
    names = ("pulled.web1", "pulled.web2", "pulled-web2", "x.y", "x-y", "a" * 32 + ".web1")
    mirrors = tuple(MIRROR._replace(name=name) for name in names)
    found = tomllib.loads(configuration(KIT._replace(sheets=(), mirrors=mirrors)))
    written = [*found["repositories"]]
    assert len(written) == len(names)
    assert all(re.fullmatch(NAME_PATTERN, name) for name in written)
    assert written[0] == "pulled-web1"
    assert found["jobs"]["recovery"]["repositories"] == written


def test_what_is_written_down_ends_no_document_early() -> None:
    lines = script(KIT).splitlines()
    begun = lines.index("put /etc/capkeep/secrets/far 600 <<'END-OF-FILE-'")
    assert lines[begun + 1 : begun + 4] == ["END-OF-FILE", "it's", "END-OF-FILE-"]
