"""Which store serves which location: one line per scheme."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from capkeep.errors import Failure
from capkeep.plan.model import Access, Brief
from capkeep.rooms.rest.store import Store, StoreError
from capkeep.rooms.service import folder
from capkeep.values import Location, ValueMistake, parse_location

if TYPE_CHECKING:
    from capkeep.rooms.rest.ssh import Login


def _directory(brief: Brief, location: Location) -> Store:
    from capkeep.rooms.rest.directory import DirectoryStore

    # Whoever removes things must be able to do so on a full disk too.
    if brief.access is Access.ADMIN:
        return DirectoryStore(location.path, 0)
    assert brief.repository is not None
    floor = brief.room.grant.limits.free_space_bytes
    return DirectoryStore(location.path, floor, brief.repository.quota_bytes)


def _rest(brief: Brief, location: Location) -> Store:
    from capkeep.rooms.rest.upstream import Endpoint, RestStore, Server

    settings = _settings(brief)
    endpoint = Endpoint(
        host=location.host,
        port=location.port or (443 if location.tls else 80),
        path="/" + (location.path.strip("/") + "/").lstrip("/"),
        tls=location.tls,
        ca_file=_options(brief).get("ca-file", ""),
        user=settings.get("RESTIC_REST_USERNAME", ""),
        password=settings.get("RESTIC_REST_PASSWORD", ""),
    )
    return RestStore(endpoint, Server(endpoint))


def _s3(brief: Brief, location: Location) -> Store:
    from capkeep.rooms.rest.rclone import s3_environment

    options, settings = _options(brief), _settings(brief)
    port = f":{location.port}" if location.port else ""
    url = f"{'https' if location.tls else 'http'}://{location.host}{port}"
    environment = s3_environment(
        url, options.get("region", ""), options.get("ca-file", ""), settings
    )
    return _rclone_store(brief, f"repo:{location.path}/", environment)


def _rclone(brief: Brief, location: Location) -> Store:
    path = location.path if location.path.endswith("/") else location.path + "/"
    remote = f"{location.host}:{path if location.path else ''}"
    return _rclone_store(brief, remote, ())


def _rclone_store(brief: Brief, remote: str, environment: tuple[tuple[str, str], ...]) -> Store:
    """The slash at the end of `remote` tells rclone that this is no file, without asking."""
    from capkeep.rooms.rest.rclone import Remote, rclone_store

    assert brief.repository is not None
    program = _options(brief).get("rclone", "")
    if not program:
        raise StoreError(Failure.REFUSED, "the plan names no rclone; run `capkeep apply` again")
    # For rclone: remotes, the remote itself is in variables of the user's: RCLONE_CONFIG_NAME_….
    given = tuple((k, v) for k, v in _settings(brief).items() if not k.startswith("AWS_"))
    told_as = brief.repository.location
    return rclone_store(program, Remote(remote, told_as, (*given, *environment)), folder(brief))


def _sftp(brief: Brief, location: Location) -> Store:
    from capkeep.rooms.rest.sftp import SftpStore
    from capkeep.rooms.rest.ssh import remove_dead_agents

    login = ssh_login(brief, location)
    remove_dead_agents(folder(brief))
    return SftpStore(login, location.path, folder(brief))


def ssh_login(brief: Brief, location: Location) -> "Login":
    """Where to log in with ssh, and how. Raises StoreError."""
    from capkeep.rooms.rest.ssh import Login

    options = _options(brief)
    login = Login(
        host=location.host,
        port=location.port or int(options.get("port", "0")),
        user=location.user,
        known_hosts=options.get("known-hosts", ""),
        identity=dict(brief.secrets).get("identity", ""),
    )
    if not login.known_hosts or not login.identity:
        kind = location.scheme
        raise StoreError(Failure.DENIED, f"an {kind} location needs an identity and known-hosts")
    return login


STORES: Final[dict[str, Callable[[Brief, Location], Store]]] = {
    "local": _directory,
    "rest": _rest,
    "s3": _s3,
    "sftp": _sftp,
    "rclone": _rclone,
}
NOT_VARIABLES: Final = ("password", "identity")  # secrets that are no environment variables


def open_store(brief: Brief) -> Store:
    """The store of the brief's repository. Starts helpers, reaches nothing. Raises StoreError."""
    assert brief.repository is not None
    try:
        location = parse_location(brief.repository.location)
    except ValueMistake as mistake:
        raise StoreError(Failure.REFUSED, str(mistake)) from mistake
    opener = STORES.get(location.scheme)
    if opener is None:
        raise StoreError(Failure.REFUSED, f"no store serves {location.scheme}: locations")
    return opener(brief, location)


def _options(brief: Brief) -> dict[str, str]:
    assert brief.repository is not None
    return dict(brief.repository.options)


def _settings(brief: Brief) -> dict[str, str]:
    """Variables for the remote: plain ones and secret ones."""
    assert brief.repository is not None
    secrets = {k: v for k, v in brief.secrets if k not in NOT_VARIABLES}
    return {**dict(brief.repository.environment), **secrets}
