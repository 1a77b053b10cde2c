"""What a version of restic cannot do, as data: a test asserts the inability too, so that a version
that learns it is noticed. capkeep's own answer to each stands beside it."""

VERSIONS = ("0.14", "0.18", "0.19")

OLD = frozenset({"0.14"})
UP_TO_18 = frozenset({"0.14", "0.18"})
ALL = frozenset(VERSIONS)

UNABLE: dict[str, frozenset[str]] = {
    # The gate looks at the sources itself.
    "fail when one of several sources is missing": UP_TO_18,
    # The gate requires that the canary can be read, and the room proves the capability.
    "notice that an unchanged file has become unreadable": ALL,
    # Nothing is lost by it: the file is not there any more.
    "name a file that vanished before its turn": ALL - OLD,
    # Of a file that changes while it is read, what was read last is kept, without a word.
    "tell that a file shrank while it was read": ALL,
    # The room tries the path itself.
    "say why a directory was not read": OLD,
    # `diagnose` reads the words.
    "tell failures apart by exit code": OLD,
    "fail when a snapshot to list does not exist": OLD,
    # A restore with 0.14 fills the holes.
    "restore holes as holes": OLD,
    # The room asks with SIGINT first.
    "clean up when terminated": OLD,
    # The room watches the free space of its cache.
    "go on when its cache is full": ALL - OLD,
    # Names arrive as U+FFFD in JSON; in snapshots they are right.
    "name paths that are not UTF-8 in JSON": ALL,
}


def able(version: str, what: str) -> bool:
    """Whether that version can. Raises KeyError for what nobody declared."""
    return version not in UNABLE[what]
