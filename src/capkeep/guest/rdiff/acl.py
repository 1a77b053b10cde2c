"""Access lists as the kernel has them (include/uapi/linux/posix_acl_xattr.h)."""

import struct
from typing import Final

from capkeep.guest.rdiff.wire import AclEntry

ACL: Final = "system.posix_acl_access"
DEFAULT_ACL: Final = "system.posix_acl_default"
VERSION: Final = 2
TAGS: Final = {0x01: "U", 0x02: "u", 0x04: "G", 0x08: "g", 0x10: "M", 0x20: "O"}
NO_ID: Final = 0xFFFFFFFF


def acl_value(entries: tuple[AclEntry, ...]) -> bytes:
    """An access list as the kernel takes it."""
    tags = {letter: tag for tag, letter in TAGS.items()}
    packed = [
        struct.pack("<HHI", tags[letter], perms, NO_ID if number < 0 else number)
        for letter, number, _name, perms in entries
    ]
    return struct.pack("<I", VERSION) + b"".join(packed)
