"""What a version of restic cannot do, as data: a test asserts the inability too, so that a version
that learns it is noticed. capkeep's own answer to each stands beside it."""

VERSIONS = ("0.14", "0.18", "0.19")

OLD = frozenset({"0.14"})
UP_TO_18 = frozenset({"0.14", "0.18"})
ALL = frozenset(VERSIONS)

UNABLE: dict[str, frozenset[str]] = {
    # The gate looks at the sources itself.
    "fail when one of several sources is missing": UP_TO_18,
    # The room watches the free space of its cache.
    "go on when its cache is full": ALL - OLD,
}


def able(version: str, what: str) -> bool:
    """Whether that version can. Raises KeyError for what nobody declared."""
    return version not in UNABLE[what]
