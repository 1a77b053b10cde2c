"""How borg tells, and hands out, single files of an archive: by `guest/borg_giving.py`; pure.

An archive is one list, of which every look is a reading of the whole. So a path is asked for with all that
is above it, at once. What is above the sources themselves is in no archive: the comment has it.
"""

import json
import os
from base64 import b64encode
from collections.abc import Mapping
from typing import Final

from capkeep.engines.base import Call, Command
from capkeep.engines.borg import command, named
from capkeep.engines.borg_listing import LISTED, above_of, parse_ls_line
from capkeep.engines.giving import Attributes, Gives, Node
from capkeep.engines.lines import as_object, as_text

_ASKED: Final = (("CAPKEEP_GIVE", "1"),)


class _Borg:
    plain_files = False
    kinds_in_archives = True

    def tops(self, listed: bytes) -> dict[str, str]:
        said = as_object(listed) or {}
        found = said.get("archives")
        if not isinstance(found, list):
            raise ValueError("borg lists no archives")  # noqa: TRY004
        items = [item for item in found if isinstance(item, dict)]
        return {
            as_text(i.get("id")): _top(as_text(i.get("name")), as_text(i.get("comment")))
            for i in items
        }

    def above(self, top: str) -> dict[str, Node]:
        _, comment = json.loads(top)
        return {
            one.path: Node(
                kind="dir", mode=one.mode, uid=one.uid, gid=one.gid, size=0, mtime="", link="",
                attributes=one.attributes, below=top,
            )
            for one in above_of(comment)
        }  # fmt: skip

    def look(self, call: Call, below: str, folder: str, names: tuple[str, ...]) -> Command:
        paths = [f"{folder}/{'/'.join(names[: n + 1])}" for n in range(len(names))]
        words = [f"--pattern=+pf:{path.strip('/')}" for path in paths] + ["--pattern=-re:."]
        archive, _ = json.loads(below)
        return _list(call, archive, *words)

    def seen(self, printed: bytes, below: str, folder: str, names: tuple[str, ...]) -> list[Node]:
        told: dict[str, Node | None] = {}
        archive, _ = json.loads(below)
        for line in printed.splitlines():
            entry = parse_ls_line(line)
            if entry is None:
                continue
            node = Node(
                kind=entry.kind, mode=entry.mode, uid=entry.uid, gid=entry.gid, size=entry.size,
                mtime=entry.mtime, link=as_text((as_object(line) or {}).get("source")),
                attributes=self.told(line), below=_top(archive, ""),
            )  # fmt: skip
            # What an archive holds twice is not known to be either.
            told[entry.path] = None if entry.path in told else node
        above = self.above(below)
        found = []
        for name in names:
            folder = f"{folder}/{name}"
            shown = os.fsencode(folder).decode(errors="replace")
            node_or_none = told.get(shown, above.get(folder))
            if node_or_none is None:
                break
            found.append(node_or_none)
        return found

    def listed(self, call: Call, snapshot: str) -> Command:
        return _list(call, snapshot)

    def told(self, line: bytes) -> Attributes:
        said = as_object(line) or {}
        lists, attributes = said.get("lists"), said.get("attributes")
        texts = lists if isinstance(lists, dict) else {}
        values = attributes if isinstance(attributes, dict) else {}
        return (
            *((name, b64encode(as_text(text).encode()).decode()) for name, text in texts.items()),
            *((name, as_text(value)) for name, value in values.items()),
        )

    def folders(self, printed: bytes) -> Mapping[str, Node]:
        return {}  # a listing's lines have told all

    def content(self, call: Call, snapshot: str, path: str) -> Command:
        words = (f"--pattern=+pp:{path.strip('/')}", "--pattern=-re:.")
        found = command(call, "export-tar", *words, named(snapshot), "-")
        return found._replace(env=(*found.env, *_ASKED))


GIVES: Gives = _Borg()


def _list(call: Call, snapshot: str, *words: str) -> Command:
    found = command(call, "list", "--json-lines", f"--format={LISTED}", *words, named(snapshot))
    return found._replace(env=(*found.env, *_ASKED))


def _top(name: str, comment: str) -> str:
    return json.dumps((name, comment))
