"""What the hostile program tries besides where systemd runs the machine; part of it there.

Written without a library, as the rest of it: D-Bus and varlink are spoken by hand, so that nothing
but the room stands between the program and the service.
Sources: the D-Bus Specification 0.43; varlink.org; sd_notify(3), systemd's docs/JOURNAL_NATIVE_PROTOCOL.md.
"""

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator

from tests.attack.hostile import HOLD, Denied, T, attempt, create, each_victim, unix

BUS = "/run/dbus/system_bus_socket"
MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1")
HOSTNAMED = ("org.freedesktop.hostname1", "/org/freedesktop/hostname1")
POLKIT = ("org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority")
OWN = ("org.freedesktop.DBus", "/org/freedesktop/DBus")


class Body:
    """A message's content as D-Bus marshals it, little-endian."""

    def __init__(self) -> None:
        self.data = bytearray()

    def pad(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)

    def number(self, value: int) -> "Body":
        self.pad(4)
        self.data += struct.pack("<I", value)
        return self

    def string(self, text: str) -> "Body":
        self.number(len(text.encode()))
        self.data += text.encode() + b"\0"
        return self

    def signature(self, text: str) -> "Body":
        self.data += bytes([len(text)]) + text.encode() + b"\0"
        return self

    @contextlib.contextmanager
    def array(self, alignment: int) -> Iterator[None]:
        self.number(0)
        at = len(self.data) - 4
        self.pad(alignment)
        start = len(self.data)
        yield
        self.data[at : at + 4] = struct.pack("<I", len(self.data) - start)


class Bus:
    """A connection to the system's message bus."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(8)
        self.sock.connect(BUS)
        self.fds: list[int] = []
        self._data = b""
        who = str(os.getuid()).encode().hex().encode()
        for line in (b"\0AUTH EXTERNAL " + who, b"NEGOTIATE_UNIX_FD"):
            self.sock.sendall(line + b"\r\n")
            said = self.sock.recv(4096)
            if not said.startswith((b"OK", b"AGREE")):
                raise Denied(f"the bus says {said!r}")
        self.sock.sendall(b"BEGIN\r\n")
        self.call(OWN, OWN[0], "Hello")

    def call(
        self, where: tuple[str, str], interface: str, member: str, signature: str = "",
        body: Body | None = None,
    ) -> bytes:  # fmt: skip
        """The content of the answer. Raises Denied with what the other side says."""
        content = bytes(body.data) if body else b""
        head = Body()
        head.data += struct.pack("<cBBBII", b"l", 1, 0, 1, len(content), 1)
        fields = [(1, "o", where[1]), (2, "s", interface), (3, "s", member), (6, "s", where[0])]
        with head.array(8):
            for code, kind, value in fields:
                head.pad(8)
                head.data.append(code)
                head.signature(kind).string(value)
            if signature:
                head.pad(8)
                head.data.append(8)
                head.signature("g").signature(signature)
        head.pad(8)
        self.sock.sendall(bytes(head.data) + content)
        while True:
            kind, answer = self._message()
            if kind == 2:
                return answer
            if kind == 3:
                raise Denied(f"{member}: {answer[4:].decode(errors='replace')}")

    def _message(self) -> tuple[int, bytes]:
        """The next message's kind and content."""
        head = self._take(16)
        size, _, fields = struct.unpack("<III", head[4:])
        self._take(fields + -fields % 8)
        return head[1], self._take(size)

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            part, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 4)
            if not part:
                raise Denied("the bus hung up")
            self.fds += fds
            self._data += part
        taken, self._data = self._data[:size], self._data[size:]
        return taken


def wait_for(path: str) -> str:
    """What others make for us comes a little later."""
    for _ in range(30):
        if os.path.lexists(path):
            return path
        time.sleep(0.1)
    raise Denied("asked for, and nothing came")


@attempt
def bus_start_unit() -> str:
    path = f"{T['root_only']}/bus-{T['token']}"
    body = Body().string(f"{T['token']}-bus.service").string("replace")
    with body.array(8):
        body.pad(8)
        body.string("ExecStart").signature("a(sasb)")
        with body.array(8):
            body.pad(8)
            body.string("/usr/bin/touch")
            with body.array(4):
                body.string("touch").string(path)
            body.number(0)
    with body.array(8):
        pass
    Bus().call(MANAGER, f"{MANAGER[0]}.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
    time.sleep(5 * HOLD)
    return path


@attempt
def bus_read_environment() -> str:
    where = (MANAGER[0], f"{MANAGER[1]}/unit/{T['secret_unit'].replace('.', '_2e')}")
    body = Body().string(f"{MANAGER[0]}.Service").string("Environment")
    answer = Bus().call(where, "org.freedesktop.DBus.Properties", "Get", "ss", body)
    return answer.partition(b"WORD=")[2].partition(b"\0")[0].decode()


@attempt
def bus_hold_shutdown() -> str:
    body = Body().string("shutdown").string(T["token"]).string("no reason").string("delay")
    bus = Bus()
    bus.call(LOGIND, f"{LOGIND[0]}.Manager", "Inhibit", "ssss", body)
    time.sleep(4 * HOLD)
    return f"descriptor {bus.fds[0]}"


@attempt
def bus_name_machine() -> str:
    body = Body().string(T["token"]).number(0)
    Bus().call(HOSTNAMED, HOSTNAMED[0], "SetPrettyHostname", "sb", body)
    return "named"


@attempt
def bus_ask_polkit() -> str:
    answer = Bus().call(
        POLKIT, f"{POLKIT[0]}.Authority", "EnumerateActions", "s", Body().string("")
    )
    return f"answered with {len(answer)} bytes"


@attempt
def managers_own_socket() -> str:
    return unix("/run/systemd/private")


@attempt
def varlink() -> str:
    problem: Exception = Denied("no varlink service to be seen")
    for folder, _, names in os.walk("/run/systemd"):
        for name in sorted(names):
            if name.startswith("io.system"):
                try:
                    return ask(f"{folder}/{name}")
                except (OSError, Denied) as error:
                    problem = error
    raise problem


def ask(path: str) -> str:
    """What it answers to what every varlink service should know; 252's do not, and say so."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1)
        sock.connect(path)
        sock.sendall(b'{"method":"org.varlink.service.GetInfo","parameters":{}}\0')
        said = sock.recv(1 << 16).partition(b"\0")[0]
    if "parameters" not in json.loads(said):
        raise Denied(said.decode())
    return f"{path} says {said.decode()}"


def start(*argv: str) -> None:
    environment = {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}", "PATH": "/usr/bin:/bin"}
    child = os.posix_spawn(argv[0], argv, environment)
    _, status = os.waitpid(child, 0)
    if status:
        raise Denied(f"exit {os.waitstatus_to_exitcode(status)}")


@attempt
def systemd_run() -> str:
    path = f"{T['root_only']}/run-{T['token']}"
    start("/usr/bin/systemd-run", "--collect", "/usr/bin/touch", path)
    time.sleep(5 * HOLD)
    return path


@attempt
def systemd_run_user() -> str:
    path = f"{T['source']}/open/user-{T['token']}"
    start("/usr/bin/systemd-run", "--user", "--collect", "/usr/bin/touch", path)
    return wait_for(path)


def datagram(path: str, content: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(content.encode(), path)
    return "sent"


@attempt
def journal_native() -> str:
    return datagram("/run/systemd/journal/socket", f"MESSAGE=native {T['token']}\n")


@attempt
def journal_stdout() -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/run/systemd/journal/stdout")
        # Identifier, unit, priority, prefixes, and whom to forward to; then lines.
        sock.sendall(f"hostile\n\n6\n0\n0\n0\n0\nstdout {T['token']}\n".encode())
        time.sleep(HOLD)
    return "sent"


@attempt
def journal_dev_log() -> str:
    return datagram("/run/systemd/journal/dev-log", f"<14>hostile: dev-log {T['token']}")


@attempt
def notify() -> str:
    return datagram("/run/systemd/notify", f"READY=1\nSTATUS={T['token']}")


@attempt
def other_units_credentials() -> str:
    problems = []
    for root in ("", T["seen_at"]):
        try:
            with open(f"{root}/run/credentials/{T['secret_unit']}/word") as file:
                return file.read()
        except OSError as error:
            problems.append(str(error))
    raise Denied("; ".join(problems))


@attempt
def vaults_other_door() -> str:
    return unix(T["vault_door"])


@attempt
def another_rooms_door() -> str:
    return unix(T["room_door"])


@attempt
def runners_door() -> str:
    return unix(T["runner_door"])


@attempt
def through_another_root() -> str:
    def do(pid: int) -> str:
        with open(f"/proc/{pid}/root{T['secret_file']}") as file:
            return file.read()

    return each_victim(do)


@attempt
def leave_unit_file() -> str:
    return create(f"/etc/systemd/system/{T['token']}.service")


@attempt
def leave_unit_in_memory() -> str:
    return create(f"/run/systemd/system/{T['token']}.service")


@attempt
def change_control_group() -> str:
    with open(f"{T['control_group']}/cgroup.max.depth", "w") as file:
        file.write("7")
    return "changed"
