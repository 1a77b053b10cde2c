"""Print what a room says of a snapshot's contents, one line an entry."""

import json
import stat
import sys

from capkeep.report.text import clean
from capkeep.rooms.protocol import Message

KINDS = {"dir": stat.S_IFDIR, "file": stat.S_IFREG, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO,
         "dev": stat.S_IFBLK, "chardev": stat.S_IFCHR, "socket": stat.S_IFSOCK}  # fmt: skip


def show(entry: Message, *, as_json: bool, long: bool) -> None:
    """One entry of ls or find, or one change of diff."""
    fields = {k: v for k, v in entry.items() if k != "event"}
    if as_json:
        sys.stdout.write(json.dumps(fields) + "\n")
        return
    path = clean(str(fields.get("path", "")))
    if "modifier" in fields:
        sys.stdout.write(f"{fields['modifier']!s:<4} {path}\n")
    elif "snapshot" in fields:
        sys.stdout.write(f"{str(fields['snapshot'])[:8]}  {path}\n")
    elif long:
        sys.stdout.write(f"{_long(fields)} {path}\n")
    else:
        sys.stdout.write(path + "\n")


def _long(fields: Message) -> str:
    mode, size, mtime = fields.get("mode"), fields.get("size"), fields.get("mtime")
    bits = KINDS.get(str(fields.get("kind")), 0) | (mode if isinstance(mode, int) else 0) & 0o7777
    when = str(mtime)[:16].replace("T", " ")
    shown = size if isinstance(size, int) else 0
    return f"{stat.filemode(bits)} {fields.get('uid')!s:>5} {fields.get('gid')!s:>5} {shown:>12} {when}"
