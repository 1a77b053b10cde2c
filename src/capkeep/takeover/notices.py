"""Who is told of runs: the channels that we have, out of the addresses that others call."""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from capkeep.takeover.draft import Draft, redacted
from capkeep.takeover.model import Kind, Path
from capkeep.takeover.nodes import Node, Section

# What Healthchecks takes behind a check's address (its documentation, "Pinging API").
_PING: Final = re.compile(r"/(start|fail|log|\d{1,3}|\$\{?\w+\}?)$")
_UUID: Final = re.compile(r"/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")


def channel(
    draft: Draft, kind: str, address: str, jobs: Iterable[str], *, key: str = "url"
) -> Path:
    """A channel's table with its secret address; the same one for the same address."""
    source = draft.secret(f"{kind}-{key}", address)
    value = (source,) if key == "urls" else source
    for name in draft.names("notify"):
        known: Path = ("notify", name)
        if draft.get(known, key) == value:
            held = draft.get(known, "jobs")
            named = (*(held if isinstance(held, tuple) else ()), *jobs)
            draft.set(known, "jobs", tuple(dict.fromkeys(str(n) for n in named)))
            return known
    table: Path = draft.table("notify", draft.free_name("notify", kind))
    draft.set(table, "kind", kind)
    draft.set(table, key, value)
    draft.set(table, "jobs", tuple(jobs))
    return table


def is_healthchecks(address: str) -> bool:
    """Whether an address is that of a check of Healthchecks, at its own host or somebody's."""
    parts = urlsplit(address)
    host = (parts.hostname or "").lower()
    path = _PING.sub("", parts.path)
    return host == "hc-ping.com" or (
        parts.path.startswith("/ping/") and bool(_UUID.search(path) or "healthchecks" in host)
    )


def sends(draft: Draft, section: Section, keys: Iterable[str], job: str) -> None:
    """resticprofile's HTTP hooks: pings of Healthchecks become a channel, the others are told."""
    for key in keys:
        node = section.take(key)
        for item in node.items() if node else ():
            _send(draft, section, key, item, job)


def _send(draft: Draft, section: Section, key: str, item: Node, job: str) -> None:
    place = item.entries().get("url", item) if item.entries() else item
    address = section.text_of(place, key)
    if not address:
        return
    if is_healthchecks(address):
        parts = urlsplit(address)
        base = parts._replace(path=_PING.sub("", parts.path), query="", fragment="").geturl()
        channel(draft, "healthchecks", base, (job,))
        return
    said = f"nothing is sent to {urlsplit(address).hostname or redacted(address)}"
    hint = '[notify.NAME] kind = "webhook" sends a report of capkeep\'s own to an address'
    section.say(Kind.LEFT, key, said, hint, node=place)
