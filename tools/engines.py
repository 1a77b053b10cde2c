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


class Python(NamedTuple):
    """An engine that is bound to its release's Python, which is unpacked beside it."""

    name: str
    suite: str
    packages: tuple[str, ...]
    interpreter: str  # in the unpacked tree
    script: str
    at_least: tuple[int, int]

    @property
    def path(self) -> Path:
        """The program, which names an interpreter beside it that finds its own libraries."""
        return CACHE / f"{self.name}-{self.suite}" / self.name

    def wrap(self) -> None:
        """Make the program and its interpreter, once the tree is there."""
        tree = self.path.parent
        # Itself: links to it may be absolute, and lead to this machine's own.
        found = [p for p in tree.glob("**/*-linux-gnu/ld-linux-*.so.*") if not p.is_symlink()]
        libraries = ":".join(str(p) for p in sorted(tree.glob("*lib/*-linux-gnu")) if p.is_dir())
        libraries += ":" + ":".join(str(p) for p in sorted(tree.glob("usr/lib/*-linux-gnu")))
        python = tree / "python"
        python.write_text(
            f"#!/bin/sh\nPYTHONHOME={tree}/usr exec {found[0]} --library-path {libraries}"
            f' {tree}/{self.interpreter} "$@"\n'
        )
        python.chmod(0o755)
        _, _, script = (tree / self.script).read_text().partition("\n")
        self.path.write_text(f"#!{python}\n{script}")
        self.path.chmod(0o755)


_SHARED: Final = (
    "borgbackup", "python3-msgpack", "python3-packaging", "libxxhash0", "libzstd1", "liblz4-1",
    "libacl1", "libc6", "zlib1g", "libexpat1", "libgcc-s1", "libffi8", "libbz2-1.0", "liblzma5",
)  # fmt: skip
BORGS: Final = (
    Python(
        "borg", "bookworm",
        (*_SHARED, "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
         "python3-pkg-resources", "libssl3"),
        "usr/bin/python3.11", "usr/bin/borg", (1, 2),
    ),
    Python(
        "borg", "trixie",
        (*_SHARED, "python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib",
         "libssl3t64"),
        "usr/bin/python3.13", "usr/bin/borg", (1, 4),
    ),
)  # fmt: skip


class FromPyPI(NamedTuple):
    """An engine in a virtual environment of the system's Python, built from what a lock names."""

    name: str
    lock: Path
    at_least: tuple[int, int]

    @property
    def path(self) -> Path:
        """The program."""
        return CACHE / f"{self.name}-pypi" / "bin" / self.name

    def fetch(self) -> None:
        """Make it, all at once. Raises CalledProcessError, TimeoutExpired, OSError."""
        target = self.path.parent.parent
        shutil.rmtree(target, ignore_errors=True)
        try:
            _run(["/usr/bin/python3", "-m", "venv", str(target)], CACHE)
            entries = re.split(r"\n(?=\S)", self.lock.read_text())
            builders = target / "builders.lock"  # they must be there before what they build
            builders.write_text("\n".join(e for e in entries if not e.startswith(self.name)))
            pip = [f"{target}/bin/pip", "install", "-q", "--disable-pip-version-check",
                   "--require-hashes", "--no-build-isolation"]  # fmt: skip
            for lock in (builders, self.lock):
                _run([*pip, "-r", str(lock)], CACHE)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise


RDIFF_BACKUP: Final = FromPyPI("rdiff-backup", Path(__file__).parent / "rdiff.lock", (2, 2))


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
    for borg in BORGS:
        if not borg.path.exists():
            print(f"fetching {borg.name} of Debian {borg.suite}", file=sys.stderr)
            fetch_suite(debian_mirror(), borg.suite, list(borg.packages), borg.path.parent)
            borg.wrap()
        if version(borg.path) != borg.at_least:
            raise LookupError(f"{borg.path} is {version(borg.path)}, expected {borg.at_least}")
    if not RDIFF_BACKUP.path.exists():
        print(f"building {RDIFF_BACKUP.name} from PyPI", file=sys.stderr)
        RDIFF_BACKUP.fetch()
    if version(RDIFF_BACKUP.path) != RDIFF_BACKUP.at_least:
        raise LookupError(f"{RDIFF_BACKUP.path} is {version(RDIFF_BACKUP.path)}")
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
    for one in (*ENGINES, *BORGS, RDIFF_BACKUP):
        print(one.name, one.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
