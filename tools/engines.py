#!/usr/bin/python3
"""Fetch the engines that the tests run against, as Debian built them, without touching the machine.

usage: tools/engines.py        prints one line per program: NAME PATH

Several Debian releases' packages are downloaded through apt with a private state directory, from
the mirror and with the keyring that this machine's own apt uses, and unpacked, not installed.
They end up in $CAPKEEP_TEST_CACHE (default /var/cache/capkeep-tests). A second run only looks.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

CACHE: Final = Path(os.environ.get("CAPKEEP_TEST_CACHE", "/var/cache/capkeep-tests"))
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
SECONDS: Final = 600  # for one apt-get


class Engine(NamedTuple):
    """A program, the release that has it, and the version it must have at least there."""

    name: str
    suite: str
    package: str
    program: str
    at_least: tuple[int, int]
    moving: bool = False  # the release is unstable: a later version is as good

    @property
    def path(self) -> Path:
        """Where the unpacked program is."""
        return CACHE / self.suite / self.program


ENGINES: Final = (
    Engine("0.14", "bookworm", "restic", "usr/bin/restic", (0, 14)),
    Engine("0.18", "trixie", "restic", "usr/bin/restic", (0, 18)),
    Engine("0.19", "sid", "restic", "usr/bin/restic", (0, 19), moving=True),
    Engine(
        "rest-server",
        "sid",
        "restic-rest-server",
        "usr/bin/restic-rest-server",
        (0, 13),
        moving=True,
    ),
)


class Mirror(NamedTuple):
    """Where this machine's own apt gets Debian from."""

    uri: str
    signed_by: str


def debian_mirror(apt: Path = Path("/etc/apt")) -> Mirror:
    """The machine's mirror of the Debian archive. Raises LookupError."""
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for file in files:
        if file.suffix in {".list", ".sources"} and file.is_file():
            text = file.read_text(errors="replace")
            found = _deb822(text) if file.suffix == ".sources" else _one_line(text)
            if found:
                return found
    raise LookupError(f"no Debian archive in {apt}/sources.list or {apt}/sources.list.d")


def _is_archive(uri: str, suites: list[str]) -> bool:
    plain = [s for s in suites if re.fullmatch(r"[a-z]+", s)]
    return bool(plain) and "main" not in plain and uri.rstrip("/").endswith("/debian")


def _deb822(text: str) -> Mirror | None:
    for paragraph in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for line in paragraph.splitlines():
            key, colon, value = line.partition(":")
            if colon and not line.startswith(("#", " ", "\t")):
                fields[key.strip().lower()] = value.strip()
        for uri in fields.get("uris", "").split():
            if _is_archive(uri, fields.get("suites", "").split()):
                return Mirror(uri, fields.get("signed-by", KEYRING))
    return None


def _one_line(text: str) -> Mirror | None:
    for line in text.splitlines():
        match = re.match(
            r"\s*deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)", line
        )
        if match and _is_archive(match["uri"], [match["suite"]]):
            signed = re.search(r"signed-by=(\S+)", match["options"] or "")
            return Mirror(match["uri"], signed[1] if signed else KEYRING)
    return None


def version(program: Path) -> tuple[int, int]:
    """What a program says about itself. Raises LookupError."""
    words = "version" if program.name == "restic" else "--version"
    said = subprocess.run(
        [program, words], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    match = re.search(r"(\d+)\.(\d+)\.\d+", said)
    if match is None:
        raise LookupError(f"{program} {words} names no version: {said!r}")
    return int(match[1]), int(match[2])


def fetch_suite(mirror: Mirror, suite: str, packages: list[str], target: Path) -> None:
    """Download a release's packages and unpack them. Raises CalledProcessError, TimeoutExpired."""
    with tempfile.TemporaryDirectory(prefix=f"{suite}-", dir=CACHE) as scratch:
        work = Path(scratch)
        for folder in ("lists/partial", "cache/archives/partial", "debs", "tree"):
            (work / folder).mkdir(parents=True)
        (work / "status").touch()
        (work / "sources.list").write_text(
            f"deb [signed-by={mirror.signed_by}] {mirror.uri} {suite} main\n"
        )
        settings = {
            "Dir::Etc::sourcelist": work / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": work / "lists",
            "Dir::State::status": work / "status",
            "Dir::Cache": work / "cache",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # A mirror that lags behind unstable is no danger here: what it has is signed all the
            # same, and each program's version is looked at.
            "Acquire::Check-Valid-Until": "false",
        }
        apt = ["apt-get", "-qq", *(w for k, v in settings.items() for w in ("-o", f"{k}={v}"))]
        _run([*apt, "update"], work / "debs")
        _run([*apt, "download", *packages], work / "debs")
        for deb in sorted((work / "debs").glob("*.deb")):
            _run(["dpkg-deb", "-x", str(deb), str(work / "tree")], work)
        (work / "tree").chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        (work / "tree").rename(target)


def _run(argv: list[str], cwd: Path) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    subprocess.run(argv, cwd=cwd, env=environment, timeout=SECONDS, check=True, stdout=sys.stderr)


def fetch() -> None:
    """Fetch what is not there yet. Raises LookupError, OSError, SubprocessError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    missing = sorted({e.suite for e in ENGINES if not e.path.exists()})
    if missing:
        mirror = debian_mirror()
        for suite in missing:
            print(f"fetching engines of Debian {suite}", file=sys.stderr)
            fetch_suite(
                mirror, suite, [e.package for e in ENGINES if e.suite == suite], CACHE / suite
            )
    for engine in ENGINES:
        found = version(engine.path)
        if found != engine.at_least and not (engine.moving and found > engine.at_least):
            raise LookupError(f"{engine.path} is {found}, expected {engine.at_least}")


def main() -> int:
    """Fetch, then say where everything is."""
    try:
        fetch()
    except (LookupError, OSError, subprocess.SubprocessError) as error:
        print(f"engines: {error}", file=sys.stderr)
        return 1
    for engine in ENGINES:
        print(engine.name, engine.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
