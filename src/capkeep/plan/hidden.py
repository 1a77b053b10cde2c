"""What no room may see that reads files of this host, and no hook; pure."""

from capkeep.config.model import Config
from capkeep.plan import prover
from capkeep.plan.model import Places
from capkeep.values import GIVEN_STORES, PLAIN_STORES, SEALED_STORES


def hidden(config: Config, places: Places) -> tuple[str, ...]:
    """Secrets, repositories, and other rooms' places; as they are named, whatever links they hold."""
    own = [places.secrets, places.cache, places.run, f"{places.state}/vault"]
    own.append(f"{places.state}/keys")
    secrets = [s for r in config.repositories for s in r.secrets]
    secrets += [source for n in config.notify for _, source in n.secrets]
    secrets += [target.identity for target in config.targets]
    files = [s.file for s in secrets if s.file]
    stores = PLAIN_STORES + SEALED_STORES + GIVEN_STORES
    credentials = [f"{d}/{s.credential}" for s in secrets if s.credential for d in stores]
    local = [r.location.path for r in config.repositories if r.location.is_local]
    own += [path for path in prover.all_scratches(config) if path]
    return _outermost([*own, *local, *files, *credentials])


def _outermost(paths: list[str]) -> tuple[str, ...]:
    """The paths without those that lie in another of them, in their first order."""
    unique = list(dict.fromkeys(paths))
    tops = {path.rstrip("/") + "/" for path in unique}
    return tuple(path for path in unique if tops.isdisjoint(_above(path)))


def _above(path: str) -> list[str]:
    """Every directory above a path, each with a slash at its end."""
    ends = [i + 1 for i, c in enumerate(path) if c == "/"]
    return [path[:end] for end in ends]
