"""How each kind of server is dumped: one file for each, and one line here."""

from collections.abc import Callable
from typing import Final

from capkeep.rooms.dumps.base import Kind


def _postgresql() -> Kind:
    from capkeep.rooms.dumps.postgresql import PostgreSQL

    return PostgreSQL()


def _mariadb() -> Kind:
    from capkeep.rooms.dumps.mariadb import MariaDB

    return MariaDB("mariadb")


def _mysql() -> Kind:
    from capkeep.rooms.dumps.mariadb import MariaDB

    return MariaDB("mysql")


def _sqlite() -> Kind:
    from capkeep.rooms.dumps.sqlite import SQLite

    return SQLite()


def _redis() -> Kind:
    from capkeep.rooms.dumps.redis import Redis

    return Redis()


def _ldap() -> Kind:
    from capkeep.rooms.dumps.ldap import LDAP

    return LDAP()


def _command() -> Kind:
    from capkeep.rooms.dumps.command import Command

    return Command()


# Each loads its own file only: a room is of one kind.
KINDS: Final[dict[str, Callable[[], Kind]]] = {
    "postgresql": _postgresql,
    "mariadb": _mariadb,
    "mysql": _mysql,
    "sqlite": _sqlite,
    "redis": _redis,
    "valkey": _redis,
    "ldap": _ldap,
    "command": _command,
}
