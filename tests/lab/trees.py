"""Debian trees to boot: each made once per machine, never changed afterwards.

`base` is what a sysadmin has before capkeep comes: Debian as its mirror has it, with restic, plus
the virtual environment /opt/capkeep that holds capkeep's dependencies. `product` is what installing
the wheel of this checkout adds to it, as a directory to lay over the base.

Everything is kept in `ROOT`, named after what it was made from: another package list, lock file or
source makes another directory. What no run has used for a week is removed by the next build.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tools.engines import CACHE, debian_mirror

ROOT: Final = CACHE / "lab"
# Debian 12, 13 and unstable, with systemd 252, 257 and (today) 262.
SUITES: Final = tuple(os.environ.get("CAPKEEP_LAB_SUITES", "bookworm trixie").split())
CHECKOUT: Final = Path(__file__).resolve().parents[2]
LOCK: Final = CHECKOUT / "tools" / "run.lock"
SECONDS: Final = 900  # for one step of a build, of which fetching Debian is the longest
UNUSED_DAYS: Final = 7
PACKAGES: Final = (
    "systemd", "systemd-sysv", "dbus", "libpam-systemd", "polkitd", "procps", "kmod",
    "ca-certificates", "python3", "python3-venv", "restic", "rdiff-backup", "bubblewrap",
    "acl", "attr", "libcap2-bin", "fuse3", "bindfs", "mtree-netbsd",
)  # fmt: skip
# What makes a tree a machine that can be looked at: a journal that survives, a FUSE device as udev
# makes it elsewhere (nspawn's /dev has none), a name of its own.
FILES: Final = {
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost lab\n::1 localhost\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nSyncIntervalSec=1s\n"
    "RateLimitIntervalSec=0\n",
    "etc/tmpfiles.d/lab.conf": "c! /dev/fuse 0666 root root - 10:229\n",
}
# Where a tree has the package that its engine came from: `dpkg -i` of it is what an upgrade does.
PACKAGED: Final = "/var/cache/lab"
RECIPE: Final = 2  # one more, and every tree is made anew
# What hosts that pull from one another have besides.
PULLING: Final = ("openssh-server", "borgbackup", "sshfs", "iproute2", "libpam-cap")


def base(suite: str, more: tuple[str, ...] = ()) -> Path:
    """A Debian tree without capkeep; `more` are further packages.

    Raises CalledProcessError, LookupError, TimeoutExpired.
    """
    parts = (RECIPE, PACKAGES, FILES, more) if more else (RECIPE, PACKAGES, FILES)
    key = _key(repr(parts).encode(), LOCK.read_bytes())
    return _stored(f"base-{suite}", key, lambda tree: _make_base(suite, tree, more))


def product(suite: str) -> Path:
    """What installing this checkout's wheel adds to `base`. Raises as `base` does."""
    tree, built = base(suite), wheel()
    key = _key(tree.parent.name.encode(), built.read_bytes())
    return _stored(f"product-{suite}", key, lambda layer: _make_product(tree, built, layer))


@functools.cache
def wheel() -> Path:
    """The wheel of this checkout, built once per run. Raises CalledProcessError."""

    def build(folder: Path) -> None:
        folder.mkdir()
        _pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, CHECKOUT)

    source = [CHECKOUT / n for n in ("pyproject.toml", "README.md", "LICENSE")]
    source += [p for p in (CHECKOUT / "src").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    parts = (p.relative_to(CHECKOUT).as_posix().encode() + p.read_bytes() for p in sorted(source))
    return next(_stored("wheel", _key(*parts), build).glob("*.whl"))


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Alone in `ROOT`, among all runs on this machine."""
    ROOT.mkdir(parents=True, exist_ok=True)
    with (ROOT / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stored(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """What `make` makes, kept as KIND-KEY: made aside and renamed, so that it is there whole."""
    place = ROOT / f"{kind}-{key}"
    with locked():
        if not place.exists():
            for old in [*ROOT.glob("building-*"), *_unused()]:
                shutil.rmtree(old)
            aside = Path(tempfile.mkdtemp(prefix="building-", dir=ROOT))
            aside.chmod(0o755)
            print(f"lab: making {place.name}", file=sys.stderr)
            umask = os.umask(0o022)
            try:
                make(aside / "tree")
                aside.rename(place)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            finally:
                os.umask(umask)
        os.utime(place)
    return place / "tree"


def _unused() -> list[Path]:
    """What no run has asked for in a long time."""
    limit = time.time() - UNUSED_DAYS * 86400
    kept = [p for kind in ("base", "product", "wheel") for p in ROOT.glob(f"{kind}-*")]
    return [p for p in kept if p.stat().st_mtime < limit]


def _key(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _make_base(suite: str, tree: Path, more: tuple[str, ...]) -> None:
    mirror = debian_mirror()
    fetch = "apt-get -q -o APT::Sandbox::User=root download restic"
    keep = f'mkdir -p "$1{PACKAGED}" && cd "$1{PACKAGED}" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" {fetch}'
    _run(
        [
            "mmdebstrap", "-q", "--variant=minbase",
            f"--include={','.join(PACKAGES + more)}",
            # A mirror that lags behind unstable is no danger here: what it has is signed all the same.
            '--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=Acquire::Retries "3"',
            f"--customize-hook={keep}",
            suite, tree, f"deb [signed-by={mirror.signed_by}] {mirror.uri} {suite} main",
        ]
    )  # fmt: skip
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "var/log/journal").mkdir(exist_ok=True)
    # One mirror's options are of no use inside, where there is no network.
    (tree / "etc/apt/sources.list").write_text(f"deb {mirror.uri} {suite} main\n")
    with tempfile.TemporaryDirectory(prefix="wheels-", dir=tree.parent) as wheels:
        _download(tree, Path(wheels))
        inside(tree, ["python3", "-m", "venv", "/opt/capkeep"])
        inside(
            tree,
            ["/opt/capkeep/bin/pip", "install", "-q", "--no-index", "--find-links=/mnt", "--no-deps",
             "--require-hashes", "-r", "/mnt/run.lock"],
            mounted=Path(wheels),
        )  # fmt: skip


def _download(tree: Path, wheels: Path) -> None:
    """Fetch capkeep's locked dependencies for the tree's Python, as this machine's pip fetches."""
    version = (tree / "usr/bin/python3").readlink().name.removeprefix("python")
    kinds = (f"{kind}_{platform.machine()}" for kind in ("manylinux_2_28", "manylinux_2_17",
                                                         "manylinux2014", "linux"))  # fmt: skip
    _pip(
        "download", "-q", "--no-deps", "--require-hashes", "--only-binary=:all:", "-d", wheels,
        "--implementation", "cp", "--python-version", version,
        *(f"--platform={kind}" for kind in kinds), "-r", LOCK,
    )  # fmt: skip
    shutil.copy(LOCK, wheels / "run.lock")


def _make_product(tree: Path, built: Path, layer: Path) -> None:
    """Install the wheel as a user does, but record what that adds instead of changing the base."""
    layer.mkdir()
    shutil.copy(built, layer)
    inside(
        tree,
        ["/opt/capkeep/bin/pip", "install", "-q", "--no-index", "--no-deps", "--root=/mnt",
         f"/mnt/{built.name}"],
        mounted=layer, writable=False,
    )  # fmt: skip
    (layer / built.name).unlink()
    (layer / "usr/local/bin").mkdir(parents=True)
    (layer / "usr/local/bin/capkeep").symlink_to("/opt/capkeep/bin/capkeep")


def inside(
    tree: Path, argv: Sequence[str], *, mounted: Path | None = None, writable: bool = True
) -> None:
    """Run a program in a tree that is not booted, without network. Raises CalledProcessError.

    `mounted` is found below /mnt there and can be written to; the tree only if it is `writable`.
    """
    mount = ["--bind", mounted, "/mnt"] if mounted else []
    _run(
        [
            "bwrap", "--die-with-parent", "--unshare-net", "--unshare-pid",
            "--bind" if writable else "--ro-bind", tree, "/", *mount,
            "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/", "--clearenv",
            "--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin", "--setenv", "HOME", "/tmp",
            "--setenv", "PIP_ROOT_USER_ACTION", "ignore",
            "--setenv", "PIP_DISABLE_PIP_VERSION_CHECK", "1",
            "--", *argv,
        ]
    )  # fmt: skip


def _pip(*words: str | Path) -> None:
    _run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words])


def _run(argv: Sequence[str | Path]) -> None:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, argv, done.stdout)
