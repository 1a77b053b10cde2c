"""Has borg tell, of each entry of an archive, all that decides who may have it: for a giver.

`list` says it in its lines of JSON, as "lists" and "attributes"; `export-tar` writes archives as star(1)
does, with these and with every link's whole content. Sources: borg 1.2 and 1.4, borg/archiver.py,
borg/archive.py, borg/platform/linux.pyx.
"""

import base64
import os
import stat
import tarfile

ACCESS, DEFAULT = "SCHILY.acl.access", "SCHILY.acl.default"  # star's names
ATTRIBUTE = "SCHILY.xattr."
TOLD = (b"user.", b"system.")  # attributes; those of the system's are lists of NFS's and others
UNKNOWN = "unknown"  # in place of a list that cannot be told

TYPES = {
    stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE,
}  # fmt: skip
OTHER = tarfile.FIFOTYPE  # of what no giver gives


def tell_all(archiver) -> None:
    """Change `list` and `export-tar`."""
    from borg.helpers import parseformat

    plain = parseformat.ItemFormatter.get_item_data

    def get_item_data(self, item):
        data = plain(self, item)
        lists, attributes = _rights(item)
        if lists:
            data["lists"] = lists
        if attributes:
            data["attributes"] = {
                name: base64.b64encode(value).decode() for name, value in attributes.items()
            }
        return data

    def export_tar(self, args, archive, tarstream):
        _export(archive, self.build_matcher(args.patterns, args.paths), tarstream)
        return getattr(self, "exit_code", 0)

    parseformat.ItemFormatter.get_item_data = get_item_data
    archiver.Archiver._export_tar = export_tar  # noqa: SLF001 - there is no other place


def _export(archive, matcher, tarstream) -> None:
    firsts: dict[str, object] = {}  # by path: files that others may be links to

    def wanted(item) -> bool:
        first = item.get("hardlink_master", True) and "source" not in item
        if first and stat.S_ISREG(item.mode):
            firsts[item.path] = item
        return bool(matcher.match(item.path))

    with tarfile.open(
        fileobj=tarstream, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8",
        errors="surrogateescape",
    ) as tar:  # fmt: skip
        for item in archive.iter_items(wanted):
            tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
            told, chunks = _member(item, firsts)
            if told.type == tarfile.REGTYPE:
                content = archive.pipeline.fetch_many([chunk.id for chunk in chunks])
                tar.addfile(told, _Content(content))
            else:
                tar.addfile(told)


def _member(item, firsts):
    """What is told of an entry, and where its content is."""
    told = tarfile.TarInfo(item.path)
    told.mode, told.uid, told.gid = stat.S_IMODE(item.mode), item.uid, item.gid
    told.mtime = item.mtime / 1e9
    told.type = TYPES.get(stat.S_IFMT(item.mode), OTHER)
    lists, attributes = _rights(item)
    told.pax_headers = lists | {
        ATTRIBUTE + name: os.fsdecode(value) for name, value in attributes.items()
    }
    chunks = item.get("chunks") or ()
    if told.type == tarfile.SYMTYPE:
        told.linkname = item.source
    elif told.type == tarfile.REGTYPE and "source" in item:
        first = firsts.get(item.source)
        # Borg tells links by their inode's number, which can be another file's by then: whose content
        # that is says the first one.
        if first is None or _owned(first) != _owned(item):
            told.type = OTHER
        else:
            chunks = first.get("chunks") or ()
    if told.type == tarfile.REGTYPE:
        told.size = sum(chunk.size for chunk in chunks)
    return told, chunks


def _owned(item) -> tuple[object, ...]:
    return item.uid, item.gid, item.mode, item.get("acl_access")


def _rights(item) -> tuple[dict[str, str], dict[str, bytes]]:
    """Its access control lists, with numbers, and its attributes, as far as they matter."""
    found = ((ACCESS, item.get("acl_access")), (DEFAULT, item.get("acl_default")))
    lists = {name: _numbered(os.fsdecode(value)) for name, value in found if value}
    attributes = {
        os.fsdecode(name): value or b"" for name, value in (item.get("xattrs") or {}).items()
        if name.startswith(TOLD)
    }  # fmt: skip
    return lists, attributes


def _numbered(text: str) -> str:
    """A list with the numbers that borg has put behind the names."""
    lines = []
    for line in filter(None, text.split("\n")):
        words = line.split(":")
        if len(words) == 4 and words[3].isascii() and words[3].isdigit():
            lines.append(f"{words[0]}:{words[3]}:{words[2]}")
        elif len(words) == 3 and not words[1]:
            lines.append(line)
        else:
            return UNKNOWN
    return "\n".join(lines)


class _Content:
    """A file's chunks, as tarfile reads files."""

    def __init__(self, chunks) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, size: int = -1, /) -> bytes:
        """So many bytes; fewer at the end."""
        while len(self._rest) < size:
            part = next(self._chunks, None)
            if part is None:
                break
            self._rest += part
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken
