"""Print the snapshots of one or more repositories as a table."""

import json

from capkeep.report.text import clean
from capkeep.rooms.protocol import Message


def show_snapshots(found: list[Message], *, as_json: bool) -> None:
    """`found` holds one message a repository: its name and its list of snapshots."""
    if as_json:
        print(json.dumps([{k: v for k, v in m.items() if k != "event"} for m in found]))
        return
    for message in found:
        rows = message.get("snapshots")
        listed = rows if isinstance(rows, list) else []
        print(f"{message.get('repository')}: {len(listed)} snapshots")
        for row in listed:
            paths = " ".join(clean(str(p)) for p in row.get("paths", []))
            time = str(row.get("time", ""))[:19].replace("T", " ")
            print(f"  {str(row.get('id'))[:8]}  {time}  {clean(str(row.get('host'))):<16}  {paths}")
