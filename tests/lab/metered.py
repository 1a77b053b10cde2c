"""Stands in a machine for NetworkManager: a program on the system bus whose network is metered.

It speaks D-Bus itself (the D-Bus specification, "Message Protocol"), as the machines have no library
for it: it answers every call with one number. Started there as `python3 metered.py NUMBER`.
"""

import os
import socket
import struct
import sys

NAME = "org.freedesktop.NetworkManager"
POLICY = f"""<busconfig><policy user="root"><allow own="{NAME}"/></policy>
<policy context="default"><allow send_destination="{NAME}"/></policy></busconfig>
"""
CALL, RETURN = 1, 2


def padded(data: bytes, to: int) -> bytes:
    return data + b"\0" * (-len(data) % to)


def text(value: str) -> bytes:
    return struct.pack("<I", len(value)) + value.encode() + b"\0"


def field(code: int, kind: str, value: "str | int") -> bytes:
    if isinstance(value, int):
        content = struct.pack("<I", value)
    else:
        content = bytes([len(value)]) + value.encode() + b"\0" if kind == "g" else text(value)
    return bytes([code, 1]) + kind.encode() + b"\0" + content


def message(kind: int, serial: int, fields: list[bytes], body: bytes = b"") -> bytes:
    array = b""
    for one in fields:
        array = padded(array, 8) + one
    head = struct.pack("<4BII", ord("l"), kind, 0, 1, len(body), serial)
    return padded(head + struct.pack("<I", len(array)) + array, 8) + body


def call(serial: int, member: str, signature: str = "", body: bytes = b"") -> bytes:
    bus = "org.freedesktop.DBus"
    fields = [field(1, "o", "/org/freedesktop/DBus"), field(2, "s", bus), field(3, "s", member)]
    fields += [field(6, "s", bus)] + ([field(8, "g", signature)] if signature else [])
    return message(CALL, serial, fields, body)


def sender_of(array: bytes) -> str:
    """Who sent a message, by the fields of its header."""
    at = 0
    while at < len(array):
        at += -at % 8
        code, kind = array[at], array[at + 2 : at + 3]
        at += 4
        if kind == b"g":
            at += array[at] + 2
        elif kind == b"u":
            at += 4
        else:
            (length,) = struct.unpack_from("<I", array, at)
            if code == 7:
                return array[at + 4 : at + 4 + length].decode()
            at += length + 5
    return ""


def main() -> None:
    number = int(sys.argv[1])
    bus = socket.socket(socket.AF_UNIX)
    bus.connect("/run/dbus/system_bus_socket")
    stream = bus.makefile("rb")
    bus.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    stream.readline()
    bus.sendall(b"BEGIN\r\n" + call(1, "Hello"))
    bus.sendall(call(2, "RequestName", "su", padded(text(NAME), 4) + struct.pack("<I", 0)))
    serial = 2
    while head := stream.read(16):
        _, kind, _, _, length, asked, size = struct.unpack("<4BIII", head)
        array = stream.read(size + -size % 8)[:size]
        stream.read(length)
        if kind == CALL:
            serial += 1
            variant = b"\x01u\0" + b"\0" + struct.pack("<I", number)
            fields = [field(5, "u", asked), field(6, "s", sender_of(array)), field(8, "g", "v")]
            bus.sendall(message(RETURN, serial, fields, variant))


if __name__ == "__main__":
    main()
