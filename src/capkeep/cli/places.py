"""Which directories a command works with: the system's, a prefix's, or the user's own."""

import argparse
import os

from capkeep.errors import RefusedError
from capkeep.kernel.ways import resolve as real_path
from capkeep.plan.places import RUN, Mode, Places, for_starter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capkeep.plan.model import Plan

SYSTEM = Places(
    config="/etc/capkeep",
    state="/var/lib/capkeep",
    cache="/var/cache/capkeep",
    log="/var/log/capkeep",
    run=RUN,
)


def resolve(args: argparse.Namespace) -> Places:
    """The places that `--prefix` and `--user` select, by their real paths.

    /var/cache may be a link to another disk, and inside a room only real paths are there. Raises
    RefusedError for a link that others than root (and oneself) can exchange.
    """
    if args.prefix:
        return _real(prefixed(os.path.abspath(args.prefix)))
    if args.user:
        return _real(user_places())
    return _real(for_starter(SYSTEM, root=not os.path.isdir(SYSTEM.own_run)))


def _real(places: Places) -> Places:
    return Places(*map(real_path, places))


def refuse_other_opener(plan: "Plan") -> None:
    """Raises RefusedError for anybody but the user who opens the doors of this host's rooms."""
    own = os.geteuid()
    if own == plan.opener:
        return
    if plan.opener == 0:
        raise RefusedError(
            "only root can do this", hint="use sudo, or --user for your own files without root"
        )
    who = plan.runner.grant.user
    raise RefusedError(
        f"the rooms of this host are started by {who}, not by " + ("root" if own == 0 else "you"),
        hint=f"the same after: sudo -u {who}",
    )


def mode(args: argparse.Namespace) -> Mode:
    """System unless `--user` was given."""
    return Mode.USER if args.user else Mode.SYSTEM


def prefixed(prefix: str) -> Places:
    """Everything below one directory, for demonstrations, tests and containers."""
    return Places(*(f"{prefix}/{name}" for name in ("etc", "state", "cache", "log", "run")))


def user_places() -> Places:
    """The user's own directories (XDG Base Directory Specification 0.8)."""
    home = os.path.expanduser("~")
    if not home.startswith("/"):
        raise RefusedError("HOME is not set", hint="user mode keeps its files below $HOME")

    def xdg(variable: str, default: str) -> str:
        base = os.environ.get(variable, "")
        return (base if base.startswith("/") else f"{home}/{default}") + "/capkeep"

    state = xdg("XDG_STATE_HOME", ".local/state")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Places(
        config=xdg("XDG_CONFIG_HOME", ".config"),
        state=state,
        cache=xdg("XDG_CACHE_HOME", ".cache"),
        log=state + "/log",
        run=f"{runtime}/capkeep" if runtime.startswith("/") else state + "/run",
    )
