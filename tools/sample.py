#!/usr/bin/python3
"""Make a directory of files that backups are known to lose something of.

usage: tools/sample.py make DIR        (as root)
"""

import contextlib
import os
import stat
import struct
import sys

FOREIGN = 65533  # an owner that is nobody on this machine, within every 16-bit range
# <linux/posix_acl_xattr.h>: version 2, then entries of tag, permissions, id.
_ACL_USER_OBJ, _ACL_USER, _ACL_GROUP_OBJ, _ACL_MASK, _ACL_OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NO_ID = 0xFFFFFFFF


def acl(foreign: int) -> bytes:
    """An access ACL that lets one more user read."""
    entries = (
        (_ACL_USER_OBJ, 6, _NO_ID),
        (_ACL_USER, 4, foreign),
        (_ACL_GROUP_OBJ, 4, _NO_ID),
        (_ACL_MASK, 4, _NO_ID),
        (_ACL_OTHER, 0, _NO_ID),
    )
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def make(folder: str) -> None:
    """Fill `folder`, which must not exist. Raises OSError."""
    os.mkdir(folder, 0o755)
    base = os.fsencode(folder)

    def write(
        name: bytes, content: bytes = b"content\n", mode: int = 0o644, owner: int = 0
    ) -> bytes:
        path = base + b"/" + name
        with open(path, "wb") as file:
            file.write(content)
        os.chown(path, owner, owner)
        os.chmod(path, mode)
        return path

    write(b"private", mode=0o600, owner=FOREIGN)
    write(b"mode-000", mode=0o000, owner=FOREIGN)
    write(b"setuid", mode=0o4755)
    write(b"not-utf8-\xff\xfe")
    write(b"new\nline")
    write(b"empty", b"")
    os.link(write(b"hard-link-1"), base + b"/hard-link-2")
    os.symlink(b"nowhere", base + b"/symlink")
    os.mkfifo(base + b"/fifo", 0o640)
    with contextlib.suppress(PermissionError):  # containers may not make devices
        os.mknod(base + b"/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    sparse = write(b"sparse", b"")
    os.truncate(sparse, 64 << 20)
    with contextlib.suppress(OSError):  # not every filesystem has them
        os.setxattr(write(b"with-xattr"), b"user.capkeep", b"\x00\x01binary")
    with contextlib.suppress(OSError):
        os.setxattr(write(b"with-acl", mode=0o640), b"system.posix_acl_access", acl(FOREIGN))
    with contextlib.suppress(OSError):  # cap_net_raw, effective: VFS_CAP_REVISION_2
        capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
        os.setxattr(write(b"with-capability", mode=0o755), b"security.capability", capability)
    closed = base + b"/closed"
    os.mkdir(closed)
    write(b"closed/inside", mode=0o400, owner=FOREIGN)
    os.chown(closed, FOREIGN, FOREIGN)
    os.chmod(closed, 0o700)
    for entry in os.scandir(base):
        os.utime(entry.path, ns=(10**18 + 1, 10**18 + 123_456_789), follow_symlinks=False)


def main() -> int:
    """One verb."""
    if len(sys.argv) != 3 or sys.argv[1] != "make":
        print(__doc__, file=sys.stderr)
        return 2
    make(sys.argv[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
