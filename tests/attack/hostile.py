"""A program that wants out. It stands in an engine's place and tries everything it can think of.

Self-contained: the harness writes it to a file with the line `TARGETS = {…}` before it, and the
system's Python runs it, inside a room or without one. Each attempt returns what it got, or raises.
What it got is written down for the harness, which looks from outside whether that is true.
"""

import ctypes
import fcntl
import json
import mmap
import os
import platform
import re
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

if "TARGETS" not in globals():
    TARGETS: dict[str, str] = json.loads(sys.argv[1])

T = TARGETS
STARTED = time.monotonic()
HOLD = 0.2  # seconds for which a success is kept alive, so that it can be seen from outside
ATTEMPTS: dict[str, Callable[[], str]] = {}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
# open_by_handle_at, name_to_handle_at, add_key, bpf, perf_event_open, userfaultfd, unshare, mount,
# ptrace, process_vm_readv, tgkill, rt_sigqueueinfo, mknodat, clone
NUMBERS = {
    "x86_64": (304, 303, 248, 321, 298, 323, 272, 165, 101, 310, 234, 129, 259, 56),
    "aarch64": (265, 264, 217, 280, 241, 282, 97, 40, 117, 270, 131, 138, 33, 220),
}[platform.machine()]
(OPEN_BY_HANDLE, NAME_TO_HANDLE, ADD_KEY, BPF, PERF, USERFAULTFD, UNSHARE, MOUNT, PTRACE,
 VM_READV, TGKILL, SIGQUEUE, MKNODAT, CLONE) = NUMBERS  # fmt: skip
IO_URING_SETUP, PIDFD_GETFD = 425, 438
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000


class Denied(Exception):
    """An attempt that came to nothing."""


def attempt(function: Callable[[], str]) -> Callable[[], str]:
    ATTEMPTS[function.__name__.replace("_", "-")] = function
    return function


def call(number: int, *args: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = int(libc.syscall(ctypes.c_long(number), *wide))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def others() -> Iterator[int]:
    """Every other process that can be seen and is not a parent of this program's own making."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            yield int(name)
    if T.get("booted"):  # no process namespace: numbers mean the same inside, seen or not
        yield from (os.getppid(), int(T["victim"]))


def victims() -> Iterator[int]:
    """Whom to attack: the room's own program inside, the harness's victim without a room."""
    known = T["victim"]
    for pid in others():
        if T["roomed"] == "yes":
            yield pid
            continue
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read()
        except OSError:
            continue
        if str(pid) == known and b"victim" in words:
            yield pid


def each_victim(do: Callable[[int], str]) -> str:
    problem: Exception = Denied("there is nobody else")
    for pid in victims():
        try:
            return do(pid)
        except (OSError, Denied) as error:
            problem = error
    raise problem


# -- writing


def create(path: str) -> str:
    with open(path, "x") as file:
        file.write(T["token"])
    return path


@attempt
def create_in_tmp() -> str:
    return create(f"/tmp/{T['token']}")


@attempt
def create_in_shm() -> str:
    return create(f"/dev/shm/{T['token']}")


@attempt
def create_in_source() -> str:
    return create(f"{T['source']}/open/{T['token']}")


@attempt
def write_to_etc() -> str:
    return create(f"/etc/{T['token']}")


@attempt
def overwrite_own_file() -> str:
    with open(f"{T['source']}/own/overwrite", "r+") as file:
        file.write(T["token"])
    return "written"


@attempt
def overwrite_writable_file() -> str:
    with open(f"{T['source']}/writable", "r+") as file:
        file.write(T["token"])
    return "written"


@attempt
def change_mode() -> str:
    os.chmod(f"{T['source']}/own/mode", 0o777)
    return "changed"


@attempt
def change_times() -> str:
    os.utime(f"{T['source']}/own/times", (1, 1))
    return "changed"


@attempt
def set_attribute() -> str:
    os.setxattr(f"{T['source']}/own/attribute", "user.token", T["token"].encode())
    return "set"


@attempt
def delete_file() -> str:
    os.unlink(f"{T['source']}/own/delete")
    return "deleted"


@attempt
def rename_file() -> str:
    os.rename(f"{T['source']}/own/rename", f"{T['source']}/own/renamed")
    return "renamed"


@attempt
def link_into_cache() -> str:
    os.link(f"{T['source']}/own/link", f"{T['out']}/linked-{T['token']}")
    return "linked"


@attempt
def write_to_fifo() -> str:
    fd = os.open(f"{T['source']}/fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, T["token"].encode())
    os.close(fd)
    return "written"


@attempt
def write_kernel_setting() -> str:
    with open(T["setting"], "w") as file:
        file.write(T["token"])
    return "written"


@attempt
def leave_setuid_program() -> str:
    path = f"{T['out']}/setuid-{T['token']}"
    with open("/usr/bin/true", "rb") as source, open(path, "xb") as file:
        file.write(source.read())
    problems = []
    ways: list[Callable[[], object]] = [
        lambda: os.chmod(path, 0o4755),
        lambda: os.chmod(path, 0o2755),
        lambda: call(452, -100, path.encode(), 0o4755, 0),  # fchmodat2
        lambda: os.close(os.open(path + "-o", os.O_CREAT | os.O_WRONLY, 0o4755)),
    ]
    for way in ways:
        try:
            way()
        except OSError as error:
            problems.append(str(error))
    found = [p for p in (path, path + "-o") if os.path.exists(p) and os.stat(p).st_mode & 0o6000]
    if not found:
        raise Denied("; ".join(problems))
    return found[0]


@attempt
def make_device_node() -> str:
    path = f"{T['out']}/node-{T['token']}"
    os.mknod(path, 0o020666, os.makedev(1, 8))
    return path


@attempt
def read_disk_through_node() -> str:
    with open(f"{T['source']}/disk", "rb", buffering=0) as file:
        return file.read(512).decode().strip("\0")


@attempt
def delete_from_repository_disk() -> str:
    os.unlink(T["pack"])
    return "deleted"


# -- secrets and other processes


@attempt
def read_secret_file() -> str:
    with open(T["secret_file"]) as file:
        return file.read()


@attempt
def read_other_rooms_cache() -> str:
    with open(T["other_cache"]) as file:
        return file.read()


@attempt
def see_other_processes() -> str:
    with open(f"/proc/{T['victim']}/cmdline", "rb") as file:
        words = file.read()
    if b"victim" not in words:
        raise Denied("somebody else has that number here")
    return T["victim"]


def search(pid: int, read: Callable[[int, int], bytes]) -> str:
    wanted = [T["victim_secret"].encode(), T["password"].encode()]
    mine = {id(w) for w in wanted}
    assert mine
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            first, _, last = line.split()[0].partition("-")
            if " rw" in line and "[v" not in line:
                data = read(int(first, 16), min(int(last, 16) - int(first, 16), 64 << 20))
                for word in wanted:
                    if word in data:
                        return word.decode()
    raise Denied("no secret in what could be read")


@attempt
def read_process_memory() -> str:
    def do(pid: int) -> str:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:

            def read(at: int, size: int) -> bytes:
                try:
                    return os.pread(memory.fileno(), size, at)
                except OSError:
                    return b""

            return search(pid, read)

    return each_victim(do)


@attempt
def read_memory_by_call() -> str:
    def do(pid: int) -> str:
        probe = ctypes.create_string_buffer(16)
        own = struct.pack("QQ", ctypes.addressof(probe), 16)

        def read(at: int, size: int) -> bytes:
            data = ctypes.create_string_buffer(size)
            here = struct.pack("QQ", ctypes.addressof(data), size)
            try:
                call(VM_READV, pid, here, 1, struct.pack("QQ", at, size), 1, 0)
            except OSError:
                return b""
            return data.raw

        call(VM_READV, pid, own, 0, own, 0, 0)  # may we at all?
        return search(pid, read)

    return each_victim(do)


@attempt
def read_environment() -> str:
    def do(pid: int) -> str:
        with open(f"/proc/{pid}/environ", "rb") as file:
            data = file.read()
        for word in (T["victim_secret"], T["password"]):
            if word.encode() in data:
                return word
        raise Denied("no secret there")

    return each_victim(do)


@attempt
def trace_process() -> str:
    def do(pid: int) -> str:
        call(PTRACE, 0x4206, pid, 0, 0)  # PTRACE_SEIZE does not stop the victim
        return str(pid)

    return each_victim(do)


@attempt
def steal_descriptor() -> str:
    def do(pid: int) -> str:
        handle = os.pidfd_open(pid)
        fd = call(PIDFD_GETFD, handle, int(T["victim_fd"]) if T["roomed"] == "no" else 0, 0)
        return os.readlink(f"/proc/self/fd/{fd}")

    return each_victim(do)


@attempt
def look_at_descriptors() -> str:
    def do(pid: int) -> str:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
            if T["roomed"] == "yes" or T["source"] in link:
                return link
        raise Denied("nothing there")

    return each_victim(do)


@attempt
def signal_process() -> str:
    def do(pid: int) -> str:
        os.kill(pid, signal.SIGUSR1)
        return str(pid)

    return each_victim(do)


@attempt
def signal_by_thread_and_queue() -> str:
    def do(pid: int) -> str:
        info = struct.pack("iii", signal.SIGUSR2, 0, -1) + b"\0" * 116
        try:
            call(SIGQUEUE, pid, int(signal.SIGUSR2), info)
        except OSError:
            call(TGKILL, pid, pid, int(signal.SIGUSR2))
        return str(pid)

    return each_victim(do)


@attempt
def signal_by_file_owner() -> str:
    """A file that becomes readable sends its owner a signal of one's choice."""

    def do(pid: int) -> str:
        reader, writer = os.pipe()
        fcntl.fcntl(reader, 8, pid)  # F_SETOWN
        fcntl.fcntl(reader, 10, int(signal.SIGHUP))  # F_SETSIG
        fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.write(writer, b"x")
        time.sleep(HOLD)
        os.close(reader)
        os.close(writer)
        return str(pid)

    return each_victim(do)


# -- sockets


def unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1)
        sock.connect(path)
        sock.sendall(T["token"].encode())
    return "connected"


@attempt
def socket_on_source() -> str:
    return unix(f"{T['source']}/listener")


@attempt
def abstract_socket() -> str:
    return unix("\0" + T["abstract"])


@attempt
def message_bus() -> str:
    return unix(T["bus"])


@attempt
def name_service() -> str:
    return unix(T["names"])


@attempt
def other_rooms_door() -> str:
    return unix(T["door"])


def tcp(host: str) -> str:
    with socket.socket() as sock:
        sock.settimeout(1)
        sock.connect((host, int(T["tcp_port"])))
        sock.sendall(T["token"].encode())
    return "connected"


@attempt
def tcp_to_loopback() -> str:
    return tcp("127.0.0.1")


@attempt
def tcp_to_address() -> str:
    return tcp(T["address"])


@attempt
def tcp_over_ipv6() -> str:
    with socket.socket(socket.AF_INET6) as sock:
        sock.settimeout(1)
        sock.connect(("::1", int(T["tcp6_port"])))
        sock.sendall(T["token"].encode())
    return "connected"


@attempt
def udp() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(T["token"].encode(), (T["address"], int(T["udp_port"])))
    return "sent"


def hold_socket(*kind: int) -> str:
    with socket.socket(*kind) as sock:
        time.sleep(HOLD)
        return f"family {int(sock.family)}"


@attempt
def raw_socket() -> str:
    return hold_socket(socket.AF_INET, socket.SOCK_RAW, 1)


@attempt
def packet_socket() -> str:
    return hold_socket(socket.AF_PACKET, socket.SOCK_RAW, 0)


@attempt
def kernel_socket() -> str:
    """netlink, which tells of interfaces and routes."""
    return hold_socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


@attempt
def vm_socket() -> str:
    return hold_socket(socket.AF_VSOCK, socket.SOCK_STREAM, 0)


@attempt
def crypto_socket() -> str:
    return hold_socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0)


@attempt
def listen_for_others() -> str:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", int(T["listen_port"])))
        sock.listen()
        sock.settimeout(1.5)
        other, _ = sock.accept()
        other.close()
    return "somebody came"


@attempt
def open_a_door_in_cache() -> str:
    path = f"{T['out']}/door"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        time.sleep(HOLD)
    return path


# -- privileges and the kernel


@attempt
def new_user_namespace() -> str:
    problem: Exception | None = None
    for number, args in (
        (UNSHARE, (CLONE_NEWUSER,)),
        (435, None),
        (CLONE, (CLONE_NEWUSER | 17, 0, 0, 0, 0)),
    ):
        try:
            if args is None:
                child = clone3()
            elif number == CLONE:
                child = call(number, *args)
                if child == 0:
                    time.sleep(HOLD)
                    os._exit(0)
            else:
                child = in_child(lambda: call(UNSHARE, CLONE_NEWUSER))
            if child:
                os.waitpid(child, 0)
            return "namespace made"
        except OSError as error:
            problem = error
    assert problem is not None
    raise problem


def clone3() -> int:
    child = call(435, struct.pack("8Q", CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)
    if child == 0:
        time.sleep(HOLD)
        os._exit(0)
    return child


def in_child(do: Callable[[], object]) -> int:
    """Run something that would change this process for good in a child, if one can be had."""
    reader, writer = os.pipe()
    try:
        child = os.fork()
    except OSError:
        do()  # no child to be had: then here, and stay
        time.sleep(HOLD)
        return 0
    if child == 0:
        try:
            do()
            os.write(writer, b"y")
            time.sleep(HOLD)
        except OSError as error:
            os.write(writer, str(error.errno).encode())
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 9)
    os.close(reader)
    if said != b"y":
        os.waitpid(child, 0)
        raise OSError(int(said), os.strerror(int(said)))
    return child


@attempt
def mount_something() -> str:
    def do() -> None:
        try:
            call(UNSHARE, CLONE_NEWNS)
        except OSError:
            call(UNSHARE, CLONE_NEWUSER | CLONE_NEWNS)
        call(MOUNT, b"none", b"/", None, 0x4000 | 1 << 18, None)
        call(MOUNT, T["token"].encode(), b"/tmp", b"tmpfs", 0, None)

    child = in_child(do)
    if child:
        os.waitpid(child, 0)
    return "mounted"


@attempt
def open_by_handle() -> str:
    """CAP_DAC_READ_SEARCH opens any file of a filesystem by its inode, whatever is mounted over."""
    mount = os.open(T["handle_mount"], os.O_RDONLY | os.O_DIRECTORY)
    raw = bytes.fromhex(T["handle"])
    handle = struct.pack("Ii", len(raw), int(T["handle_kind"])) + raw
    buffer = ctypes.create_string_buffer(handle, len(handle))
    fd = call(OPEN_BY_HANDLE, mount, buffer, os.O_RDONLY)
    with open(fd) as file:
        return file.read()


@attempt
def store_in_keyring() -> str:
    call(ADD_KEY, b"user", T["token"].encode(), b"x", 1, -4)  # the user's own keyring
    return T["token"]


@attempt
def load_bpf() -> str:
    fd = call(BPF, 0, struct.pack("IIII", 2, 4, 4, 1) + b"\0" * 112, 128)  # BPF_MAP_CREATE, array
    time.sleep(HOLD)
    return os.readlink(f"/proc/self/fd/{fd}")


@attempt
def set_up_io_uring() -> str:
    fd = call(IO_URING_SETUP, 4, ctypes.create_string_buffer(120))
    time.sleep(HOLD)
    return os.readlink(f"/proc/self/fd/{fd}")


@attempt
def watch_performance() -> str:
    attributes = struct.pack("IIQ", 1, 120, 0) + b"\0" * 104  # PERF_TYPE_SOFTWARE, cpu clock
    fd = call(PERF, attributes, -1, 0, -1, 0)  # every process on the first processor
    time.sleep(HOLD)
    return os.readlink(f"/proc/self/fd/{fd}")


@attempt
def handle_page_faults() -> str:
    fd = call(USERFAULTFD, 0)
    time.sleep(HOLD)
    return os.readlink(f"/proc/self/fd/{fd}")


@attempt
def use_the_32_bit_calls() -> str:
    """socketcall, socket(AF_UNIX) by `int 0x80`: filters that forget the old ABI let it through."""
    if platform.machine() != "x86_64":
        raise Denied("not on this machine")
    # mov eax,359 (socket); mov ebx,1; mov ecx,1; xor edx,edx; push rbx…; int 0x80; pop rbx; ret
    code = bytes.fromhex("53b867010000bb01000000b90100000031d2cd805bc3")
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    time.sleep(HOLD)
    return os.readlink(f"/proc/self/fd/{result}")


# -- the vault


def http(method: str, path: str, body: bytes = b"") -> int:
    """The status of one request."""
    return talk(method, path, body)[0]


def talk(method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """One request as it stands, without a client library that would tidy it up."""
    answer = talk_plainly if "vault_url" in T else talk_through_pipes
    return answer(method, path, body)


def talk_plainly(method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """HTTP/1.1, to the server that people have without capkeep."""
    with socket.create_connection(("127.0.0.1", server_port()), 5) as sock:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += "Accept: application/vnd.x.restic.rest.v2\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode() + body)
        answer = b""
        while part := sock.recv(65536):
            answer += part
    try:
        return int(answer.split(b" ")[1]), answer.partition(b"\r\n\r\n")[2]
    except (IndexError, ValueError):
        raise Denied(f"no answer to {method} {path}: {answer[:80]!r}") from None


def server_port() -> int:
    return int(re.findall(r"127\.0\.0\.1:(\d+)", T["vault_url"])[0])


HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
DATA, HEADERS, RST_STREAM, GOAWAY = 0, 1, 3, 7


def handover() -> socket.socket:
    """The socket that an engine's relay hands its pipes over with."""
    if "rclone.program" not in " ".join(sys.argv):
        raise Denied("no vault in sight")
    return socket.socket(fileno=os.dup(3))


def hand(sock: socket.socket, *fds: int) -> None:
    rights = struct.pack(f"{len(fds)}i", *fds)
    sock.sendmsg([b"p"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def pair(sock: socket.socket) -> tuple[int, int]:
    """What a relay does; (to be written, to be read)."""
    their_in, out = os.pipe()
    into, their_out = os.pipe()
    hand(sock, their_in, their_out)
    os.close(their_in)
    os.close(their_out)
    return out, into


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def field(name: str, value: str) -> bytes:
    words = name.encode(), value.encode()
    return b"\0" + b"".join(
        b"\x7f" + varint(len(w) - 127) + w if len(w) > 126 else bytes([len(w)]) + w for w in words
    )


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def talk_through_pipes(method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """HTTP/2, as restic speaks it to what it takes for rclone."""
    fields = {":method": method, ":path": path, ":scheme": "http", ":authority": "x",
              "accept": "application/vnd.x.restic.rest.v2"}  # fmt: skip
    if body:
        fields["content-length"] = str(len(body))
    block = b"".join(field(n, v) for n, v in fields.items())
    said = HELLO + frame(HEADERS, 4 if body else 5, 1, block)
    with handover() as sock:
        out, into = pair(sock)
    try:
        os.write(out, said + (frame(DATA, 1, 1, body) if body else b""))
        return hear(into, f"{method} {path}")
    finally:
        os.close(out)
        os.close(into)


def hear(into: int, what: str) -> tuple[int, bytes]:
    """The answer on the first stream."""
    poll = select.poll()
    poll.register(into, select.POLLIN)
    answer, status, content = b"", 0, b""
    while poll.poll(5000) and (part := os.read(into, 65536)):
        answer += part
        while len(answer) >= 9 and len(answer) >= 9 + (size := int.from_bytes(answer[:3], "big")):
            kind, flags, inside, answer = (
                answer[3],
                answer[4],
                answer[9 : 9 + size],
                answer[9 + size :],
            )
            if kind == HEADERS:
                status = int(inside[3:6])  # after what empties the table, and the name's number
            elif kind == DATA:
                content += inside
            if kind in (RST_STREAM, GOAWAY) or (kind in (DATA, HEADERS) and flags & 1):
                if not status:
                    raise Denied(f"no answer to {what}: {inside[:80]!r}")
                return status, content
    raise Denied(f"no answer to {what}")


def any_accepted(requests: list[tuple[str, str, bytes]]) -> str:
    said = []
    for method, path, body in requests:
        try:
            status = http(method, path, body)
        except (OSError, Denied) as error:
            said.append(str(error))
            continue
        said.append(str(status))
        if status < 300:
            return f"{method} {path}: {status}"
    raise Denied(", ".join(said))


def stored() -> list[str]:
    """The known objects of every kind, or another one where this vault has not that one."""
    known = {"snapshots": T["snapshot_id"], "data": T["pack_id"], "keys": T["key_id"]}
    found = []
    for kind, name in known.items():
        listing = talk("GET", f"/{kind}/")[1]
        listed = re.findall("[0-9a-f]{64}", listing.decode())
        if listing != b"[]":
            found.append(f"/{kind}/{name if name in listed or not listed else listed[0]}")
    return [*found, "/config"]


@attempt
def delete_from_vault() -> str:
    return any_accepted([("DELETE", path, b"") for path in stored()])


@attempt
def overwrite_in_vault() -> str:
    methods = ("POST", "PUT")
    return any_accepted(
        [(m, path, T["token"].encode()) for path in reversed(stored()) for m in methods]
    )


@attempt
def store_under_false_name() -> str:
    kinds = ("snapshots", "keys", "index", "locks")
    return any_accepted([("POST", f"/{k}/" + "ab" * 32, T["token"].encode()) for k in kinds])


@attempt
def climb_out_of_vault() -> str:
    token = T["token"]
    ways = [
        f"/../{token}", f"/data/../../{token}", f"/%2e%2e/{token}", f"/data/..%2f..%2f{token}",
        f"//{T['source']}/open/{token}", f"/locks/../../{token}", f"/data/{token}%00", f"/{token}",
        f"/data/{'../' * 12}tmp/{token}",
    ]  # fmt: skip
    return any_accepted([("POST", way, token.encode()) for way in ways])


@attempt
def silence_the_vault() -> str:
    """Half-open and endless requests; got if afterwards nobody else is served."""
    return silence_the_server() if "vault_url" in T else silence_the_pipes()


def silence_the_server() -> str:
    port = server_port()
    held = []
    for start in (
        b"",
        b"POST /data/x HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"G" * 70000,
    ):
        for _ in range(40):
            try:
                sock = socket.create_connection(("127.0.0.1", port), 1)
                sock.setblocking(False)
                sock.send(start)
                held.append(sock)
            except OSError:
                break
    time.sleep(1)  # somebody else asks meanwhile
    return "held"


def silence_the_pipes() -> str:
    """Everything but a pair of pipes, then more pairs than anybody needs, full of nonsense."""
    record("silence-the-vault", False, "begun, and not let finish")
    with handover() as sock:
        folder = os.open("/", os.O_RDONLY)
        for fds in ((folder,), (folder, folder), (0, 0), (sock.fileno(), 2), (folder,) * 200):
            hand(sock, *fds)
        starts = (b"", HELLO + frame(HEADERS, 0, 1, b""), HELLO + b"".join(
            frame(HEADERS, 4, n, b"\x83\x86\x84\x41\x01x") for n in range(1, 2000, 2)
        ), HELLO + frame(6, 0, 0, bytes(8)) * 3000)  # fmt: skip
        held = [pair(sock) for _ in range(60)]
        for n, (out, _) in enumerate(held):
            os.set_blocking(out, False)
            try:
                os.write(out, starts[n % len(starts)])
            except OSError:
                continue
        sock.sendmsg([b"x" * 50000])
    time.sleep(1)
    return f"{len(held)} pairs"


# -- filling


@attempt
def fill_memory() -> str:
    """A little more than the room may have."""
    size = int(T["memory"])
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, 4096):
        block[at] = 1
    time.sleep(4 * HOLD)
    block.close()
    return f"{size >> 20} MiB"


@attempt
def fill_processes() -> str:
    wanted = int(T["processes"])
    children: list[int] = []
    stay, leave = os.pipe()  # an engine may not signal its children either
    try:
        for _ in range(wanted):
            child = os.fork()
            if child == 0:
                os.close(leave)
                os.read(stay, 1)
                os._exit(0)
            children.append(child)
        time.sleep(4 * HOLD)
    finally:
        os.close(leave)
        os.close(stay)
        for child in children:
            os.waitpid(child, 0)
    return f"{wanted} processes"


@attempt
def fill_threads() -> str:
    wanted = int(T["processes"])
    stop = threading.Event()
    threading.stack_size(64 << 10)
    started = []
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=stop.wait, daemon=True)
            thread.start()
            started.append(thread)
        time.sleep(4 * HOLD)
    except RuntimeError as error:
        raise Denied(f"{error} after {len(started)}") from None
    finally:
        stop.set()
        for thread in started:
            thread.join()
    return f"{wanted} threads"


@attempt
def fill_descriptors() -> str:
    wanted = int(T["descriptors"])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    opened: list[int] = []
    try:
        for _ in range(wanted):
            opened.append(os.open("/dev/null", os.O_RDONLY))
        time.sleep(4 * HOLD)
    finally:
        for fd in opened:
            os.close(fd)
    return f"{wanted} descriptors"


@attempt
def fill_disk() -> str:
    path = f"{T['out']}/fill"
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * (64 << 10))
                time.sleep(0.01)
    except OSError as error:
        os.truncate(path, os.path.getsize(path) - (256 << 10))  # room for the record of it
        return f"full: {error}"


# -- running it


def record(name: str, got: bool, detail: str) -> None:
    took = round(time.monotonic() - STARTED, 2)
    line = json.dumps({"name": name, "got": got, "detail": detail[:300], "at": took}) + "\n"
    with open(f"{T['out']}/{T['results']}", "a") as file:
        file.write(line)


def interrupt(*_: object) -> None:
    raise Denied("it hangs")


def run(name: str) -> None:
    # The timer is the process's own: no signal from anybody else is needed for it.
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 12)
    try:
        record(name, True, ATTEMPTS[name]())
    except BaseException as error:
        record(name, False, f"{type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


BECOME = """
import json, os, sys
T = json.loads(sys.argv[1])
def record(name, got, detail):
    with open(f"{T['out']}/{T['results']}", "a") as file:
        file.write(json.dumps({"name": name, "got": got, "detail": detail}) + "\\n")
"""
BECOME_ROOT = (
    BECOME
    + """
got = os.geteuid() == 0
if got:
    open(T["root_only"] + "/" + T["token"], "x").close()
record("setuid-program", got, f"effective uid {os.geteuid()}")
sys.argv[2:] and exec(sys.argv[2])
"""
)
BECOME_CAPABLE = (
    BECOME
    + """
try:
    os.setresuid(0, 0, 0)
    open(T["root_only"] + "/cap-" + T["token"], "x").close()
    record("capable-program", True, "became uid 0")
except OSError as error:
    record("capable-program", False, str(error))
"""
)


def become(name: str, program: str, code: str) -> None:
    """Turn into a program with privileges of its own; nothing comes after it."""
    try:
        os.execv(program, [program, "-I", "-S", "-c", code, json.dumps(T)])
    except OSError as error:
        record(name, False, str(error))


def main() -> int:
    if "version" in sys.argv:
        print("restic 0.18.0 compiled with go1.24.4 on linux/amd64")
        return 0
    if os.path.exists(f"{T['out']}/{T['results']}"):
        return 0  # a room may call its engine more than once
    names = T["only"].split() if T.get("only") else list(ATTEMPTS)
    if names == ["setuid-program"]:
        become("setuid-program", T["setuid"], BECOME_ROOT)
    elif names == ["capable-program"]:
        become("capable-program", T["capable"], BECOME_CAPABLE)
    else:
        for name in names:
            run(name)
    select.select([], [], [], HOLD)
    return 0


if __name__ == "__main__":
    sys.exit(main())
