"""Public keys as text, and the line that binds one to a command: read as sshd reads them."""

import base64
import shlex
import string
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capkeep.errors import RefusedError
from capkeep.host import answerer, hardening, sshd, units, users
from capkeep.host.ssh_keys import KeyTextError, parse
from capkeep.plan.model import Answer, Door, Grant, Mode, Places, Plan, Room, RoomKind, View

# Of ssh-keygen, with the fingerprint that it shows for it.
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEbdkepnmy59/BUxTh+LRNtQ14GYR43Gr0gz1kb3s8EC"
FINGERPRINT = "SHA256:BUqvEd6s3WaBaUuDC2JNOaZkomCdpkazJ3U+BbXyjOc"
PRINTABLE = st.text(string.printable.strip() + " äß", max_size=60)
LOGIN = sshd.Login("capkeep-answerer", ("capkeep-answerer",), "/var/lib/capkeep/answerer",
                   "/var/lib/capkeep/answerer/.ssh/authorized_keys", ("ssh-ed25519",))  # fmt: skip


def read_as_sshd(line: str) -> tuple[str, str, str]:
    """Options before the command, the command, and what is left for the key.

    As auth2-pubkeyfile.c and misc.c (opt_dequote, OpenSSH 9.2) go through a line.
    """
    at, quoted = 0, False
    while at < len(line) and (quoted or line[at] not in " \t"):
        if line[at] == "\\" and line[at + 1 : at + 2] == '"':
            at += 1
        elif line[at] == '"':
            quoted = not quoted
        at += 1
    options, key = line[:at], line[at:].lstrip()
    first, _, rest = options.partition('command="')
    command, left = "", rest
    while left and left[0] != '"':
        if left.startswith('\\"'):
            left = left[1:]
        command, left = command + left[0], left[1:]
    assert left == '"', "the command ends where the options do"
    return first, command, key


@given(PRINTABLE)
def test_a_command_comes_through_sshds_file_as_it_was(command: str) -> None:
    if command.endswith("\\"):
        with pytest.raises(RefusedError):
            answerer.key_line(command, KEY)
        return
    assert read_as_sshd(answerer.key_line(command, f"{KEY} root@server")) == (
        "restrict,", command, f"{KEY} root@server",
    )  # fmt: skip


@given(PRINTABLE, PRINTABLE, PRINTABLE)
def test_a_program_is_started_with_the_words_that_are_meant(
    package: str, run: str, repository: str
) -> None:
    """After sshd has read its file, and the login's shell the command."""
    places = Places("/etc/capkeep", "/var/lib/capkeep", "/c", "/l", f"/{run}")
    door = Door(f"/{run}/reader.sock", 900, 900, 0o600)
    reader = Room("reader-job-server", RoomKind.READER, Grant("r", 901, 901), door)
    answer = Answer(repository, reader.name, KEY, "capkeep-answerer", 900, 900)
    plan = Plan(
        mode=Mode.SYSTEM, places=places, group=0, interpreter="/usr/bin/python3", package=package,
        repositories=(), jobs=(), rooms=(reader,), capkeep_version="", answers=(answer,),
    )  # fmt: skip
    made_by, line, end = answerer.authorized_keys(plan).split("\n")
    assert (made_by[:1], end) == ("#", "")
    _, command, _ = read_as_sshd(line)
    words = shlex.split(command)
    assert words[:5] == ["exec", "/usr/bin/python3", "-I", "-S", "-c"]
    assert repr(package) in words[5]
    assert words[6:] == [repository, door.path]


@pytest.mark.parametrize("command", ["a\nb", "a\rb", "a\x00", "a\x1b[2J", "\\"])
def test_what_a_line_cannot_hold_is_refused(command: str) -> None:
    with pytest.raises(RefusedError):
        answerer.key_line(command, KEY)


def test_a_key_has_the_fingerprint_that_ssh_keygen_shows() -> None:
    key = parse(f"{KEY}  root@server, the first ")
    assert key.fingerprint == FINGERPRINT
    assert key.line == f"{KEY} root@server, the first"
    assert key.plain == KEY


@given(st.text(max_size=100))
def test_no_text_is_taken_for_a_key_and_its_options(text: str) -> None:
    for line in (text, f"{text} {KEY}", f"{KEY}\n{text}", KEY.replace(" ", f" {text} ")):
        try:
            key = parse(line)
        except KeyTextError:
            continue
        assert "\n" not in key.line
        assert key.plain == KEY, "what is in front of it would be options"


def test_a_key_is_of_the_kind_that_is_written() -> None:
    fields = b"".join(struct.pack(">I", len(f)) + f for f in (b"ssh-rsa", b"\3", b"n" * 256))
    blob = base64.b64encode(fields).decode()
    assert parse(f"ssh-rsa {blob}").kind == "ssh-rsa"
    for line in (f"ssh-ed25519 {blob}", blob, f"restrict {KEY}", "ssh-rsa", "ssh-rsa AAAA", ""):
        with pytest.raises(KeyTextError):
            parse(line)


def test_sshds_answer_is_read_and_its_default_has_nothing_wrong() -> None:
    said = (
        "port 22\nauthorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2\nacceptenv LANG\n"
        "acceptenv LC_*\npubkeyauthentication yes\nforcecommand none\nauthenticationmethods any\n"
        "permituserenvironment no\npubkeyacceptedalgorithms ssh-ed25519,rsa-sha2-512\n"
    )
    settings = sshd.parse(said)
    assert settings["acceptenv"] == ("LANG", "LC_*")
    assert list(sshd.judge(settings, LOGIN)) == []
    keys = sshd.key_files({"authorizedkeysfile": ("/k/%u %h/%%u none",)}, LOGIN)
    assert keys == ("/k/capkeep-answerer", "/var/lib/capkeep/answerer/%u")


@pytest.mark.parametrize(
    "settings, found",
    [
        ({"allowusers": ("root", "capkeep-*")}, ""),
        ({"allowusers": ("capkeep-answerer@192.0.2.*",)}, ""),
        ({"allowusers": ("root", "capkeep-?")}, "AllowUsers"),
        ({"denyusers": ("capkeep-answerer@192.0.2.*",)}, ""),
        ({"denyusers": ("root", "*")}, "DenyUsers"),
        ({"allowgroups": ("admins",)}, "AllowGroups"),
        ({"acceptenv": ("LD_*",)}, "AcceptEnv"),
        ({"pubkeyacceptedalgorithms": ("rsa-sha2-256",)}, "PubkeyAcceptedAlgorithms"),
    ],
)
def test_who_is_let_in_is_seen_as_sshd_sees_it(
    settings: dict[str, tuple[str, ...]], found: str
) -> None:
    good = {"authorizedkeysfile": (".ssh/authorized_keys",)}
    troubles = list(sshd.judge(good | settings, LOGIN))
    assert len(troubles) == bool(found), troubles
    assert all(found in t.text for t in troubles), troubles


def test_the_login_alone_may_knock_at_the_readers_door() -> None:
    """Where systemd opens the doors; who else asks a reader is the runner."""
    places = Places("/etc/capkeep", "/state", "/c", "/l", "/run/capkeep")
    runner = Room("runner", RoomKind.RUNNER, Grant("capkeep", 900, 900), Door("/r", 0, 900, 0o660))
    rooms = [runner]
    for name, uid in (("reader-a-a", 901), ("reader-b-b", 900)):
        door = Door(f"/run/capkeep/{name}.sock", uid, uid, 0o600)
        grant = Grant("capkeep-reader", 902, 902, view=View.HOST)
        rooms.append(Room(name, RoomKind.READER, grant, door))
    answer = Answer("a", "reader-a-a", KEY, "capkeep-answerer", 901, 901)
    plan = Plan(
        mode=Mode.SYSTEM, places=places, group=900, interpreter="/usr/bin/python3", package="/p",
        repositories=(), jobs=(), rooms=tuple(rooms), capkeep_version="", answers=(answer,),
    )  # fmt: skip
    host = hardening.Host(252, {"reader-a-a": ("/",), "reader-b-b": ("/",)}, large_ids=False)
    texts = {u.name: u.text.splitlines() for u in units.render(plan, host)}
    for name, user in (("reader-a-a", "capkeep-answerer"), ("reader-b-b", "capkeep")):
        socket = texts[f"capkeep-{name}.socket"]
        assert {f"SocketUser={user}", "SocketMode=0600"} <= {*socket}
    assert users.declared(("capkeep", "l"), "capkeep", {"l": "/s t/answerer"}) == (
        'u capkeep - "capkeep room" /nonexistent /usr/sbin/nologin',
        'u l - "capkeep login" "/s t/answerer" /bin/sh',
    )
