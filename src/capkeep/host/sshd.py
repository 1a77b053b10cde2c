"""Whether this host's sshd lets a login in by the keys that `apply` has written, and no others.

sshd says itself what its configuration comes to for a user; what follows from that is decided here, and
is pure. Sources: sshd(8), -T and -C; sshd_config(5).
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from capkeep.errors import CapkeepError
from capkeep.host.commands import run_command

SSHD: Final = "/usr/sbin/sshd"
CONFIG: Final = "/etc/ssh/sshd_config"
SECONDS: Final = 30
# Some address of nobody's (RFC 5737): where `Match Address` is used, sshd wants to be told one.
SPEC: Final = "user={0},host=server.invalid,addr=192.0.2.1,laddr=192.0.2.2,lport=22"
RELOAD: Final = f"{SSHD} -t && systemctl reload ssh"

Settings = Mapping[str, tuple[str, ...]]


class Login(NamedTuple):
    """Who is to be let in, and by which file."""

    name: str
    groups: tuple[str, ...]
    home: str
    keys: str  # path of its authorized_keys
    kinds: tuple[str, ...]  # of the keys in it: "ssh-ed25519"


class Trouble(NamedTuple):
    """Why it is not let in, or more than it should be; and what mends that."""

    text: str
    mend: str


def effective(name: str, config: str = CONFIG) -> Settings:
    """What holds for a user. Raises CapkeepError with sshd's words, OSError."""
    if not os.path.exists(SSHD):
        raise CapkeepError("there is no sshd here", hint="apt-get install openssh-server")
    code, output = run_command((SSHD, "-T", "-f", config, "-C", SPEC.format(name)), timeout=SECONDS)
    if code != 0:
        raise CapkeepError(
            f"sshd does not say what holds here: {output.strip()}", hint=f"{SSHD} -t"
        )
    return parse(output)


def parse(text: str) -> Settings:
    """The lines of `sshd -T`: a name in lower case, and its value; lists have several lines."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        found[key] = (*found.get(key, ()), value)
    return found


def judge(settings: Settings, login: Login) -> Iterator[Trouble]:
    """What of it keeps the login from being of use, or lets it do more than it should."""
    yield from _who(settings, login)
    yield from _how(settings, login)
    yield from _what(settings, login)


def key_files(settings: Settings, login: Login) -> tuple[str, ...]:
    """Every file that sshd reads keys of the login from."""
    words = " ".join(settings.get("authorizedkeysfile", ())).split()
    found = (_expanded(word, login) for word in words if word != "none")
    return tuple(p if p.startswith("/") else f"{login.home}/{p}" for p in found)


def _expanded(word: str, login: Login) -> str:
    """The %h and %u in it, and %% (sshd_config(5), TOKENS)."""
    tokens = {"%h": login.home, "%u": login.name, "%%": "%"}
    return re.sub("%[hu%]", lambda found: tokens[found[0]], word)


def _who(settings: Settings, login: Login) -> Iterator[Trouble]:
    """Lists of users and groups."""
    for kind, names in (("Users", (login.name,)), ("Groups", login.groups)):
        denied, allowed = f"Deny{kind}", f"Allow{kind}"
        for pattern in _words(settings, denied):
            if "@" not in pattern and any(_matches(name, pattern) for name in names):
                text = f"sshd lets {login.name} in nowhere: {denied} {pattern}"
                yield Trouble(text, f"grep -rn {denied} /etc/ssh, take it out there; {RELOAD}")
        patterns = _words(settings, allowed)
        # From where a server comes is not known here: whom a pattern lets in from anywhere may come.
        users = [pattern.partition("@")[0] for pattern in patterns]
        if patterns and not any(_matches(name, p) for name in names for p in users):
            text = f"sshd lets {login.name} in nowhere: {allowed} does not name it"
            yield Trouble(text, match(login, f"{allowed} {names[0]}"))


def _how(settings: Settings, login: Login) -> Iterator[Trouble]:
    """Keys, and where they are looked for."""
    if "no" in settings.get("pubkeyauthentication", ()):
        text = f"sshd takes no keys of {login.name}: PubkeyAuthentication no"
        yield Trouble(text, match(login, "PubkeyAuthentication yes"))
    if login.keys not in key_files(settings, login):
        said = " ".join(settings.get("authorizedkeysfile", ("nowhere",)))
        text = f"sshd looks for the keys of {login.name} elsewhere: AuthorizedKeysFile {said}"
        yield Trouble(text, match(login, "AuthorizedKeysFile " + login.keys.replace("%", "%%")))
    methods = _words(settings, "AuthenticationMethods")
    if methods and not {"any", "publickey"} & {*methods}:
        text = f"sshd wants more than a key: AuthenticationMethods {' '.join(methods)}"
        yield Trouble(text, match(login, "AuthenticationMethods publickey"))
    taken = ",".join(settings.get("pubkeyacceptedalgorithms", ())).split(",")
    for kind in dict.fromkeys(login.kinds):
        signing = ("rsa-sha2-256", "rsa-sha2-512") if kind == "ssh-rsa" else (kind,)
        if taken != [""] and not {*signing} & {*taken}:
            text = f"sshd takes no key of kind {kind}: PubkeyAcceptedAlgorithms"
            yield Trouble(text, match(login, f"PubkeyAcceptedAlgorithms +{signing[-1]}"))


def _what(settings: Settings, login: Login) -> Iterator[Trouble]:
    """What is started, and with what."""
    for key, plain in (("ForceCommand", "none"), ("ChrootDirectory", "none")):
        said = " ".join(_words(settings, key))
        if said and said != plain:
            text = f"sshd starts something else for {login.name}: {key} {said}"
            yield Trouble(text, match(login, f"{key} {plain}"))
    for value in _words(settings, "PermitUserEnvironment"):
        if value != "no":
            text = (
                f"keys and files of users can set their environment: PermitUserEnvironment {value}"
            )
            where = "grep -rn PermitUserEnvironment /etc/ssh, take it out there"
            yield Trouble(text, f"{where}; {RELOAD}")
    for pattern in _words(settings, "AcceptEnv"):
        if _matches("LD_PRELOAD", pattern):
            text = f"a client can choose what programs load: AcceptEnv {pattern}"
            yield Trouble(text, f"grep -rn AcceptEnv /etc/ssh, take it out there; {RELOAD}")


def match(login: Login, setting: str) -> str:
    """A command that sets something for the login alone."""
    lines = shlex.join((f"Match User {login.name}", setting))
    return f"printf '%s\\n' {lines} >> {CONFIG} && {RELOAD}"


def _words(settings: Settings, key: str) -> list[str]:
    return " ".join(settings.get(key.lower(), ())).split()


def _matches(name: str, pattern: str) -> bool:
    """As ssh_config(5) has patterns: * and ?, and nothing else."""
    wild = {"*": ".*", "?": "."}
    return re.fullmatch("".join(wild.get(c, re.escape(c)) for c in pattern), name) is not None
