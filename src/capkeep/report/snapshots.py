"""Print the snapshots of one or more repositories as a table."""

import json
from collections.abc import Mapping, Sequence

from capkeep.report.text import clean


def show_snapshots(found: Mapping[str, Sequence[object]], *, as_json: bool) -> None:
    """`found`: what each repository lists."""
    if as_json:
        print(json.dumps([{"repository": name, "snapshots": rows} for name, rows in found.items()]))
        return
    for name, rows in found.items():
        print(f"{name}: {len(rows)} snapshots")
        for row in rows:
            if not isinstance(row, dict):
                continue
            paths = " ".join(clean(str(p)) for p in row.get("paths", []))
            time = clean(str(row.get("time", ""))[:19].replace("T", " "))
            print(
                f"  {clean(str(row.get('id'))[:8])}  {time}  {clean(str(row.get('host'))):<16}  {paths}"
            )
