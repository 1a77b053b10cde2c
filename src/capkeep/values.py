"""Small frozen values with parsing and printing: sizes, durations, locations, secrets, patterns.

Read by rooms at night (patterns, locations), so nothing beyond `typing` is imported.
Every parser raises ValueMistake, whose hint says what to write instead.
"""

from typing import Final, NamedTuple


class ValueMistake(ValueError):
    """A text is not a value of its kind: one sentence, and what to write."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


# -- sizes

_BINARY: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_SIZE_UNITS: Final[dict[str, int]] = {
    "B": 1,
    **{unit: 1 << shift for unit, shift in _BINARY.items()},
    **{unit + "IB": 1 << shift for unit, shift in _BINARY.items() if unit},
    **{unit + "B": 1000 ** (shift // 10) for unit, shift in _BINARY.items() if unit},
}
_SIZE_HINT: Final = 'write a number and a unit: "512M", "10GiB" (1024 each) or "10GB" (1000 each)'
MAX_SIZE: Final = 1 << 63


def parse_size(text: str) -> int:
    """Bytes. K, M, G, T, P and KiB … count 1024 as restic and systemd do; KB … count 1000."""
    digits, unit = _split_number(text.strip())
    factor = _SIZE_UNITS.get(unit.strip().upper())
    if factor is None or not digits:
        raise ValueMistake(f"{text!r} is not a size", _SIZE_HINT)
    whole, _, fraction = digits.partition(".")
    scale = int("1" + "0" * len(fraction))
    size = int(whole) * factor + int(fraction or 0) * factor // scale
    if size >= MAX_SIZE:
        raise ValueMistake(f"{text!r} is larger than any file system", _SIZE_HINT)
    return size


def format_size(size: int) -> str:
    """Bytes, exactly, in the largest unit of 1024 that divides them: `10GiB`, `1025B`."""
    for unit, shift in reversed(_BINARY.items()):
        if unit and size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}iB"
    return f"{size}B"


def _split_number(text: str) -> tuple[str, str]:
    """The leading decimal number (digits, at most one inner point) and the rest."""
    end = 0
    while end < len(text) and end < 24 and (text[end] in "0123456789." and text[end].isascii()):
        end += 1
    number = text[:end]
    whole, point, fraction = number.partition(".")
    if not whole or (point and not fraction) or "." in fraction:
        return "", text
    return number, text[end:]


# -- durations

_DURATION_UNITS: Final = {
    "s": 1, "sec": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
    "w": 604800, "week": 604800, "weeks": 604800,
}  # fmt: skip
_DURATION_HINT: Final = 'write numbers with s, m, h, d or w, such as "36h", "90m" or "1d 12h"'
MAX_DURATION: Final = 100 * 366 * 86400


def parse_duration(text: str) -> int:
    """Seconds, from one or more whole numbers with units: `36h`, `1d 2h`, `1d2h`."""
    rest = text.strip()
    seconds = 0
    used: set[int] = set()
    while rest:
        number, rest = _split_number(rest)
        rest = rest.lstrip()
        end = 0
        while end < len(rest) and rest[end].isascii() and rest[end].isalpha():
            end += 1
        factor = _DURATION_UNITS.get(rest[:end].lower())
        if not number.isdigit() or factor is None or factor in used:
            raise ValueMistake(f"{text!r} is not a duration", _DURATION_HINT)
        used.add(factor)
        seconds += int(number) * factor
        rest = rest[end:].lstrip()
    if not used:
        raise ValueMistake("an empty text is not a duration", _DURATION_HINT)
    if seconds > MAX_DURATION:
        raise ValueMistake(f"{text!r} is more than a hundred years", _DURATION_HINT)
    return seconds


def format_duration(seconds: int) -> str:
    """Seconds, exactly, in days and below: `1d 12h`."""
    parts = []
    for unit, factor in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, factor)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


def parse_percent(text: str) -> int:
    """A whole percentage from 0 to 100, as in `50%`."""
    digits = text.strip().removesuffix("%").rstrip()
    valid = text.strip().endswith("%") and digits.isascii() and digits.isdigit()
    if not valid or len(digits) > 3 or int(digits) > 100:
        raise ValueMistake(f"{text!r} is not a percentage", 'write a whole number such as "50%"')
    return int(digits)


_RATE_HINT: Final = 'write bytes per second: "512KiB/s", "2MiB/s"'


def parse_rate(text: str) -> int:
    """Bytes per second: a size, with or without `/s` behind it."""
    try:
        return parse_size(text.strip().removesuffix("/s"))
    except ValueMistake as mistake:
        raise ValueMistake(f"{text!r} is not a rate", _RATE_HINT) from mistake


def format_rate(rate: int) -> str:
    """Bytes per second, exactly: `2MiB/s`."""
    return f"{format_size(rate)}/s"


MAX_PROCESSORS: Final = 1024
_CPU_HINT: Final = 'write a percentage of one processor: "50%" is half of one, "200%" two'


def parse_cpu(text: str) -> int:
    """Percent of one processor: `50%`, `150%`."""
    digits = text.strip().removesuffix("%").rstrip()
    valid = text.strip().endswith("%") and digits.isascii() and digits.isdigit()
    if not valid or len(digits) > 6 or not 1 <= int(digits) <= 100 * MAX_PROCESSORS:
        raise ValueMistake(f"{text!r} is not a share of processors", _CPU_HINT)
    return int(digits)


# -- retention


class Keep(NamedTuple):
    """Which of a job's snapshots stay: 0 and () where a rule is not given."""

    last: int = 0
    hourly: int = 0  # the newest of each of so many hours that have one
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within_seconds: int = 0  # all that are not this much older than the newest
    tags: tuple[str, ...] = ()  # all with one of these

    def chooses(self) -> bool:
        """Whether there is any rule."""
        return any(self)


# -- paths


def is_at_or_below(path: str, top: str) -> bool:
    """Whether a path is `top` or lies in it."""
    top = top.rstrip("/")
    return path == top or path.startswith(top + "/")


def of_all(name: str, known: list[str]) -> list[str]:
    """The known names that a name means: itself, or what was written once for each of several targets.

    One that means none is itself. No name that is written has a dot.
    """
    if name in known:
        return [name]
    return [one for one in known if one.startswith(f"{name}.")] or [name]


# -- secrets


class SecretSource(NamedTuple):
    """Where a secret comes from. Exactly one of the three is set."""

    file: str = ""
    credential: str = ""  # name of a systemd credential (systemd-creds(1))
    command: tuple[str, ...] = ()

    def written(self) -> str:
        """The source as written in the configuration; never a secret."""
        if self.command:
            return "{ command = [" + ", ".join(_quoted(w) for w in self.command) + "] }"
        if self.credential:
            return f"{{ credential = {_quoted(self.credential)} }}"
        return f"{{ file = {_quoted(self.file)} }}"


# Where systemd looks for a credential by its name (systemd.exec(5), LoadCredential=).
PLAIN_STORES: Final = ("/etc/credstore", "/run/credstore", "/usr/lib/credstore")
# Where a container's secrets are (docker, podman, kubernetes), and what systemd was given for all of
# the system (systemd.exec(5), "system credentials"). Beside these: $CREDENTIALS_DIRECTORY.
GIVEN_STORES: Final = ("/run/secrets", "/run/credentials/@system")
SEALED_STORES: Final = ("/etc/credstore.encrypted", "/run/credstore.encrypted")
# Directives of systemd.exec(5) that a configuration may do without where a host cannot give them.
# What makes a room unprivileged (its user, its capabilities, NoNewPrivileges) is not among them.
MAY_BE_MISSING: Final = (
    "BindReadOnlyPaths",
    "InaccessiblePaths",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivateUsers",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectHostname",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "SystemCallFilter",
    "TemporaryFileSystem",
)


def given_stores() -> tuple[str, ...]:
    """Where the service or the container that this program is in was given secrets."""
    import os

    own = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return (own, *GIVEN_STORES) if own.startswith("/") else GIVEN_STORES


def secret_text(raw: bytes) -> str:
    """A secret as it is stored, without the newline that editors add."""
    return raw.decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# -- locations

VAULT_SCHEMES: Final = ("local", "sftp", "s3", "rest", "rclone", "ssh")  # what a vault can serve
ENGINE_SCHEMES: Final = ("b2", "azure", "gs", "swift")  # only restic itself speaks these
_LOCATION_HINT: Final = (
    'write an absolute path, "sftp:user@host:/path", "s3:https://host/bucket",'
    ' "rest:https://host/name" or "rclone:remote:path"'
)


class Location(NamedTuple):
    """Where a repository is (restic, doc/030_preparing_a_new_repo.rst)."""

    scheme: (
        str  # one of VAULT_SCHEMES or ENGINE_SCHEMES; "pulled": a server has it and comes for it
    )
    text: str  # as the engine understands it; a local one is the path alone
    path: str = ""  # local or remote directory; s3: "bucket/prefix"; rclone: path in the remote
    host: str = ""  # sftp, ssh, s3, rest: host; rclone: name of the remote
    port: int = 0  # 0: the scheme's own
    user: str = ""  # sftp, ssh
    tls: bool = True  # s3, rest: over https

    @property
    def is_local(self) -> bool:
        """Whether the repository is a directory of this machine."""
        return self.scheme == "local"

    @property
    def engine_only(self) -> bool:
        """Whether the engine itself needs the network to reach it."""
        return self.scheme in ENGINE_SCHEMES


def parse_location(text: str) -> Location:
    """A restic location. Raises ValueMistake, also for one that carries a password."""
    if not text or not text.isprintable():
        raise ValueMistake("the location is empty or not printable", _LOCATION_HINT)
    if text.startswith("/"):
        return _local(text)
    scheme, colon, address = text.partition(":")
    if not colon or "/" in scheme:
        raise ValueMistake(f"{text!r} is a relative path", _LOCATION_HINT)
    if scheme == "local":
        return _local(address)
    if scheme in ENGINE_SCHEMES and address:
        return Location(scheme, text)
    readers = {"sftp": _sftp, "s3": _s3, "rest": _rest, "rclone": _rclone, "ssh": _ssh}
    if scheme not in readers:
        raise ValueMistake(f"nothing is known to reach {scheme!r}", _guess(scheme, text))
    if not address:
        raise ValueMistake(f"{text!r} ends after the scheme", _LOCATION_HINT)
    return readers[scheme](text, address)


def _guess(scheme: str, text: str) -> str:
    if scheme in ("http", "https"):
        return f'for a rest-server write "rest:{text}", for S3 "s3:{text}"'
    if scheme == "scp" and text[len(scheme) :].startswith("://"):
        return f'write "sftp{text[len(scheme) :]}"'
    if "@" in scheme:
        return f'write "sftp:{text}"'
    return _LOCATION_HINT


def _local(path: str) -> Location:
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts:
        raise ValueMistake(f"{path!r} is not an absolute path without ..", _LOCATION_HINT)
    clean = "/" + "/".join(p for p in parts if p not in ("", "."))
    if clean == "/":
        raise ValueMistake("the root directory cannot be a repository", _LOCATION_HINT)
    return Location("local", clean, path=clean)


def _host_port(text: str, where: str) -> tuple[str, int]:
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueMistake(f"{where!r} has no host", _LOCATION_HINT)
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or " " in host or host.startswith("-"):
        raise ValueMistake(f"{where!r} has no host", _LOCATION_HINT)
    if port and not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise ValueMistake(f"{port!r} is not a port", "write a number from 1 to 65535")
    return host, int(port or 0)


def _user_host(text: str, where: str) -> tuple[str, str]:
    user, at, host = text.rpartition("@")
    if at and ":" in user:
        raise ValueMistake(
            "the location carries a password",
            "use a key: options.identity = { file = … }",
        )
    if user.startswith("-"):
        raise ValueMistake(f"{where!r} has no user", _LOCATION_HINT)
    return user, host


def _sftp(text: str, address: str) -> Location:
    """`sftp:user@host:/path` or `sftp://user@host:port//path` (// for an absolute one)."""
    if address.startswith("//"):
        authority, _, path = address[2:].partition("/")
        user, host_port = _user_host(authority, text)
        host, port = _host_port(host_port, text)
    else:
        at = address.find("]") if "[" in address.partition("/")[0] else 0
        colon = address.find(":", max(at, 0))
        if colon < 0:
            raise ValueMistake(f"{text!r} has no path", 'write "sftp:user@host:/path"')
        authority, path = address[:colon], address[colon + 1 :]
        if "@" in path.partition("/")[0] and "@" not in authority:
            authority = address[: address.rfind("@") + 1]  # user:password@
        user, host_port = _user_host(authority, text)
        host, port = _host_port(host_port, text)
    if not path:
        raise ValueMistake(f"{text!r} has no path", 'write "sftp:user@host:/path"')
    return Location("sftp", text, path=path, host=host, port=port, user=user)


def _ssh(text: str, address: str) -> Location:
    """`ssh://user@host:port/path`: the engine's own program is started there."""
    authority, slash, path = address.removeprefix("//").partition("/")
    if not address.startswith("//") or not path.strip("/") or ".." in path.split("/"):
        raise ValueMistake(f"{text!r} has no absolute path", 'write "ssh://user@host/path"')
    user, host_port = _user_host(authority, text)
    host, port = _host_port(host_port, text)
    return Location("ssh", text, path=slash + path, host=host, port=port, user=user)


def _url(text: str, address: str, *, default_tls: bool | None) -> tuple[str, int, bool, str]:
    """Host, port, tls and path of `https://host:port/path`; `default_tls` where no scheme is."""
    scheme, found, rest = address.partition("://")
    if not found and default_tls is not None:
        scheme, rest = "https" if default_tls else "http", address
    if scheme not in ("http", "https"):
        raise ValueMistake(f"{text!r} has no http:// or https://", _LOCATION_HINT)
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise ValueMistake(
            "the location carries a user or password",
            "write credentials.RESTIC_REST_USERNAME and credentials.RESTIC_REST_PASSWORD"
            " (rest) or the AWS_… ones (s3), each as { file = … }",
        )
    host, port = _host_port(authority, text)
    return host, port, scheme == "https", path


def _s3(text: str, address: str) -> Location:
    host, port, tls, path = _url(text, address, default_tls=True)
    if not path.strip("/"):
        raise ValueMistake(f"{text!r} has no bucket", 'write "s3:https://host/bucket"')
    return Location("s3", text, path=path.strip("/"), host=host, port=port, tls=tls)


def _rest(text: str, address: str) -> Location:
    host, port, tls, path = _url(text, address, default_tls=None)
    return Location("rest", text, path=path, host=host, port=port, tls=tls)


def _rclone(text: str, address: str) -> Location:
    remote, colon, path = address.partition(":")
    if not colon or not remote or remote.startswith("-"):
        raise ValueMistake(f"{text!r} names no remote", 'write "rclone:remote:path"')
    return Location("rclone", text, path=path, host=remote)


# -- patterns


class Glob(NamedTuple):
    """A pattern of paths: `*` and `?` within a name, `**` for any number of directories.

    A pattern also covers everything below what it matches. Nothing else is special.
    """

    text: str
    parts: tuple[str, ...]

    def matches(self, path: str) -> bool:
        """Whether an absolute path, or a directory above it, fits; at most parts times names."""
        return _match_parts(self.parts, path.strip("/").split("/") if path.strip("/") else [])


def parse_glob(text: str) -> Glob:
    """An absolute pattern, or a relative one that begins with `**/`. Raises ValueMistake."""
    hint = f'write an absolute path or "**/{text.lstrip("./")}"'
    if not text or "\0" in text or "\n" in text:
        raise ValueMistake("the pattern is empty or holds a line break", 'write "/path/**/name"')
    if text != "**" and not text.startswith(("/", "**/")):
        raise ValueMistake(f"pattern {text!r} is neither absolute nor begins with **/", hint)
    names = [n for n in text.split("/") if n not in ("", ".")]
    if ".." in names:
        raise ValueMistake(f"pattern {text!r} holds ..", "write the path without ..")
    if text != "/" and any("**" in n and n != "**" for n in names):
        raise ValueMistake(
            f"pattern {text!r} has ** inside a name", "write ** alone between slashes, or *"
        )
    parts = [n for i, n in enumerate(names) if n != "**" or i == 0 or names[i - 1] != "**"]
    if parts and parts[-1] == "**":
        parts.insert(-1, "*")  # "/a/**" is what is below /a, not /a itself
    return Glob(text, tuple(parts))


def _match_parts(parts: tuple[str, ...], names: list[str]) -> bool:
    """Leftmost match with a return to the last `**` only: enough, as any suffix is covered."""
    part = name = 0
    back: tuple[int, int] | None = None
    while part < len(parts):
        if parts[part] == "**":
            part += 1
            back = (part, name)
        elif name < len(names) and _match_name(parts[part], names[name]):
            part += 1
            name += 1
        elif back is not None and back[1] < len(names):
            back = (back[0], back[1] + 1)
            part, name = back
        else:
            return False
    return True


def _match_name(pattern: str, name: str) -> bool:
    """`*` and `?` within one name, with a return to the last `*` only."""
    p = n = 0
    star, mark = -1, 0
    while n < len(name):
        if p < len(pattern) and pattern[p] == "*":
            star, mark = p, n
            p += 1
        elif p < len(pattern) and pattern[p] in ("?", name[n]):
            p += 1
            n += 1
        elif star >= 0:
            mark += 1
            p, n = star + 1, mark
        else:
            return False
    return all(c == "*" for c in pattern[p:])


def check_exclude(text: str) -> None:
    """Raises ValueMistake for a pattern the engine would refuse (Go's filepath.Match syntax)."""
    hint = "write [abc] with both brackets, or \\[ for the character itself"
    if not text.strip() or "\0" in text or "\n" in text:
        raise ValueMistake("the pattern is empty or holds a line break", 'write "**/.cache"')
    for name in text.removeprefix("!").split("/"):
        position = 0
        while position < len(name):
            if name[position] == "\\":
                if position + 1 == len(name):
                    raise ValueMistake(f"pattern {text!r} ends in a lone backslash", hint)
                position += 2
            elif name[position] == "[":
                position = _end_of_class(name, position, text, hint)
            else:
                position += 1


def _end_of_class(name: str, start: int, text: str, hint: str) -> int:
    position = start + 1 + (name[start + 1 : start + 2] == "^")
    first = True
    while position < len(name) and (first or name[position] != "]"):
        for bound in range(2):
            if bound and name[position : position + 1] != "-":
                break
            position += bound
            if name[position : position + 1] in ("", "-", "]"):
                raise ValueMistake(f"pattern {text!r} has a range without an end", hint)
            position += 2 if name[position] == "\\" else 1
        first = False
    if position >= len(name):
        raise ValueMistake(f"pattern {text!r} has [ without ]", hint)
    return position + 1
