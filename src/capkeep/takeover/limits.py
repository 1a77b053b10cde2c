"""How fast a repository may be written to, as both engines say it: in kibibytes a second."""

from typing import Final

from capkeep.takeover.draft import Draft
from capkeep.takeover.model import Kind, Path
from capkeep.takeover.nodes import Section

LEAST: Final = 64  # what a job's limit may be at least


def rate(draft: Draft, section: Section, key: str, table: Path, ours: str) -> None:
    """Carries one limit over, unless it is slower than any of ours may be."""
    node = section.node.entries().get(key)
    kibibytes = section.number(key)
    if kibibytes and kibibytes < LEAST:
        said = f"{kibibytes} KiB/s is slower than any limit here"
        section.say(Kind.LEFT, key, said, f'write {ours} = "{LEAST}KiB/s"', node=node)
    elif kibibytes:
        draft.set(table, ours, f"{kibibytes}KiB/s")
