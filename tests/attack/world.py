"""The machine around the rooms: what is worth attacking, and what is seen from outside.

Everything lies below one directory, or is taken away at the end: sockets in /run, one kernel
setting, files that a successful attempt leaves in /tmp and /etc.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import secrets
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

PYTHON = os.path.realpath("/usr/bin/python3")
SETTING = Path("/proc/sys/kernel/poweroff_cmd")  # a word that nobody reads before the power goes
HOSTILE = Path(__file__).parent / "hostile.py"
START = '\nif __name__ == "__main__":'  # of it
SERVICES = Path(__file__).parent / "hostile_services.py"
BORROWED = "from tests.attack.hostile import"  # a line of it that only its readers need
# Users without names, of this run alone: two runs on one machine do not see each other.
_FIRST = 1_000_000 + secrets.randbelow(100_000) * 16
_NAMES = ("reader", "vault", "keeper", "viewer", "restorer", "runner", "today", "other", "user",
          "notifier", "dumper", "hook", "prover", "copier", "puller", "mounter")  # fmt: skip
UIDS = {name: _FIRST + i for i, name in enumerate(_NAMES)}
SUBORDINATE = 1 << 30 | _FIRST // 16 << 16 & 0x3FFF0000  # ids of the prover's, likewise
LOOP_CTL_GET_FREE = 0x4C82  # linux/loop.h
LIMITS = {"memory": 320 << 20, "processes": 64, "descriptors": 8192}
VICTIM = """
import os, signal, sys, time
secret, log, fd = sys.argv[1], sys.argv[2], os.open(sys.argv[3], os.O_RDONLY)
def note(number, frame):
    with open(log, "a") as file:
        file.write(str(number) + "\\n")
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
    signal.signal(number, note)
kept = ("victim-" + secret)[7:]
print(fd, flush=True)
while True:
    time.sleep(60)
"""


class Seen(NamedTuple):
    """What a watcher noticed of processes of one user."""

    things: frozenset[str]
    processes: int
    threads: int
    memory: int  # bytes, of the largest
    descriptors: int  # of the one with most


class Watcher(threading.Thread):
    """Looks at every process of a user, many times a second, as root from outside."""

    def __init__(self, uid: int, *, in_user_namespace: bool = False) -> None:
        super().__init__(daemon=True)
        self.uid = uid
        self._is_expected = in_user_namespace
        self.things: set[str] = set()
        self.most = [0, 0, 0, 0]
        self._done = threading.Event()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._sockets: set[str] = set()
        self._namespace = os.stat("/proc/self/ns/user").st_ino
        self._keys = self._count_keys()
        # The victim, and on a booted machine the user's own manager: nothing of what they have counts.
        self._before = frozenset(os.listdir("/proc"))

    def run(self) -> None:
        while not self._done.wait(0.02):
            self._look()

    def stop(self) -> Seen:
        self._done.set()
        if self.is_alive():  # building the world may have failed before it was started
            self.join(5)
        return Seen(frozenset(self.things), *self.most)

    def _look(self) -> None:
        # A user's rooms are user namespaces, each with a limit of its own.
        counts: dict[int, int] = {}
        if self._count_keys() > self._keys:
            self.things.add("keyring")
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError):
                    if os.stat(f"/proc/{name}/task").st_uid in {self.uid, 0} and self._is_his(name):
                        room = os.stat(f"/proc/{name}/ns/user").st_ino
                        counts[room] = counts.get(room, 0) + (name not in self._before)
                        self._look_at(name)
        self.most[0] = max(self.most[0], *counts.values(), 0)

    def _count_keys(self) -> int:
        """Keys of the user, whose keyrings outlive his processes for a while (proc(5))."""
        with open("/proc/key-users") as file:
            counts = dict(line.strip().split(":", 1) for line in file)
        return int(counts.get(str(self.uid), "0").split()[0])

    def _is_his(self, pid: str) -> bool:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("Uid:"):
                    return line.split()[1] == str(self.uid)
        return False

    def _look_at(self, pid: str) -> None:
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        if int(status["TracerPid"]):
            self.things.add("traced")
        if pid in self._before:
            return
        self.most[1] = max(self.most[1], int(status["Threads"]))
        self.most[2] = max(self.most[2], int(status.get("VmRSS", "0 kB").split()[0]) << 10)
        if os.stat(f"/proc/{pid}/ns/user").st_ino != self._namespace:
            self.things.update(() if self._is_expected else ("user-namespace",))
        with open(f"/proc/{pid}/mountinfo") as file:
            self.things.update(f"mount:{line.split(' - ')[1].split()[1]}" for line in file
                               if " - tmpfs capkeep-" in line)  # fmt: skip
        links = os.listdir(f"/proc/{pid}/fd")
        self.most[3] = max(self.most[3], len(links))
        for fd in links if len(links) < 200 else ():
            with contextlib.suppress(OSError):
                link = os.readlink(f"/proc/{pid}/fd/{fd}")
                if link.startswith("anon_inode:"):
                    self.things.add(link)
                elif link.startswith("socket:") and link not in self._sockets:
                    self._sockets.add(link)
                    self.things.add(f"family:{self._family(int(pid), int(fd))}")

    def _family(self, pid: int, fd: int) -> int:
        handle = os.pidfd_open(pid)
        try:
            copy = self._libc.syscall(438, handle, fd, 0)  # pidfd_getfd
        finally:
            os.close(handle)
        if copy < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        try:
            with socket.socket(fileno=os.dup(copy)) as sock:
                return sock.getsockopt(socket.SOL_SOCKET, 39)  # SO_DOMAIN
        finally:
            os.close(copy)


class Ears(threading.Thread):
    """Listens on every kind of socket and FIFO of the machine, and calls on a port of its own."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.heard: dict[str, bytes] = {}
        self.callers = 0  # how often somebody answered on `call_port`
        self.call_port = 0
        self._listeners: dict[socket.socket, str] = {}
        self._fifos: dict[int, str] = {}
        self._open: dict[socket.socket, str] = {}
        self._done = threading.Event()

    def listen(self, name: str, sock: socket.socket) -> None:
        sock.listen()
        self._listeners[sock] = name

    def datagrams(self, name: str, sock: socket.socket) -> None:
        self._open[sock] = name

    def fifo(self, name: str, path: str) -> None:
        self._fifos[os.open(path, os.O_RDWR | os.O_NONBLOCK)] = name

    def run(self) -> None:
        while not self._done.is_set():
            watched = [*self._listeners, *self._open, *self._fifos]
            for ready in select.select(watched, [], [], 0.05)[0]:
                self._hear(ready)
            self._call()

    def _hear(self, ready: socket.socket | int) -> None:
        if isinstance(ready, int):
            name, data = self._fifos[ready], os.read(ready, 4096)
        elif ready in self._listeners:
            name, data = self._listeners[ready], b"(connected)"
            self._open[ready.accept()[0]] = name
        else:
            name = self._open[ready]
            try:
                data = ready.recv(4096)
            except OSError:
                data = b""
            if not data:
                del self._open[ready]
                ready.close()
        self.heard[name] = self.heard.get(name, b"") + data

    def _call(self) -> None:
        if self.call_port:
            with socket.socket() as sock:
                sock.settimeout(0.2)
                if sock.connect_ex(("127.0.0.1", self.call_port)) == 0:
                    self.callers += 1

    def stop(self) -> None:
        self._done.set()
        if self.is_alive():  # building the world may have failed before it was started
            self.join(5)
        for sock in [*self._listeners, *self._open]:
            sock.close()
        for fd in self._fifos:
            os.close(fd)


class World:
    """Use as a context; leaving it takes everything away."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.base = ""
        self.ears = Ears()
        self.constant: dict[str, str] = {}
        self.victims: dict[int, subprocess.Popen[bytes]] = {}
        self.tokens: list[str] = []
        self.current_uid = 0

    def __enter__(self) -> "World":
        try:
            self._build()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    # -- building

    def _build(self) -> None:
        self.base = tempfile.mkdtemp(prefix="capkeep-attack-", dir="/srv")
        os.chmod(self.base, 0o755)
        self.stack.callback(shutil.rmtree, self.base, ignore_errors=True)
        self.stack.callback(self._forget_tokens)
        for name, mode in (("source", 0o755), ("programs", 0o755), ("root-only", 0o700),
                           ("etc", 0o755), ("etc/secrets", 0o700), ("outs", 0o755),
                           ("run", 0o755), ("cache", 0o711), ("cache/other", 0o700)):  # fmt: skip
            self._directory(name, mode)
        os.chown(f"{self.base}/cache/other", UIDS["other"], UIDS["other"])
        self._secret_files()
        self._programs()
        self._sockets()
        self._disk()
        self._setting()
        self.stack.callback(self._end_victims)
        self.ears.start()

    def _directory(self, name: str, mode: int) -> None:
        os.mkdir(f"{self.base}/{name}")
        os.chmod(f"{self.base}/{name}", mode)

    def _secret_files(self) -> None:
        self.secrets = {name: f"capkeep-{name}-{secrets.token_hex(12)}"
                        for name in ("file", "cache", "victim", "password", "disk")}  # fmt: skip
        secret_file = f"{self.base}/etc/secrets/other"
        other_cache = f"{self.base}/cache/other/secret"
        for path, name, uid in ((secret_file, "file", 0), (other_cache, "cache", UIDS["other"]),
                                (f"{self.base}/etc/secrets/repo", "password", 0)):  # fmt: skip
            Path(path).write_text(self.secrets[name])
            os.chmod(path, 0o600)
            os.chown(path, uid, uid)
        self.constant |= {
            "secret_file": secret_file, "other_cache": other_cache, "password": self.secrets["password"],
            "victim_secret": self.secrets["victim"], "root_only": f"{self.base}/root-only",
            "source": f"{self.base}/source", "memory": str(LIMITS["memory"] * 3 // 2),
            "processes": str(LIMITS["processes"] * 3 // 2), "descriptors": str(LIMITS["descriptors"] + 500),
            "setting": str(SETTING),
        }  # fmt: skip
        kind, handle = file_handle(secret_file)
        self.constant |= {"handle_kind": str(kind), "handle": handle.hex(), "handle_mount": "/usr"}
        if os.stat("/usr").st_dev != os.stat(self.base).st_dev:
            self.constant["handle_mount"] = f"{self.base}/source"

    def _programs(self) -> None:
        """Programs that lend privileges to whoever starts them, as a machine has many of."""
        self.constant |= {name: f"{self.base}/programs/{name}" for name in ("setuid", "capable")}
        shutil.copy(PYTHON, self.constant["setuid"])
        os.chmod(self.constant["setuid"], 0o4755)
        shutil.copy(PYTHON, self.constant["capable"])
        subprocess.run(
            ["setcap", "cap_setuid,cap_dac_override+ep", self.constant["capable"]], check=True
        )
        self.today = f"{self.base}/programs/today"
        shutil.copy(PYTHON, self.today)
        subprocess.run(["setcap", "cap_dac_read_search+ep", self.today], check=True)

    def _sockets(self) -> None:
        names = {"listener": f"{self.base}/source/listener", "door": f"{self.base}/run/other.sock",
                 "bus": "/run/dbus/system_bus_socket", "names": "/run/nscd/socket"}  # fmt: skip
        for name, known in names.items():
            path = self._beside(known) if known.startswith("/run/") else known
            if name != "listener":
                self.constant[name] = path
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(path)
            os.chmod(path, 0o666)
            self.ears.listen(name, sock)
        abstract = f"capkeep-{secrets.token_hex(6)}"
        sock = socket.socket(socket.AF_UNIX)
        sock.bind("\0" + abstract)
        self.ears.listen("abstract", sock)
        tcp = socket.create_server(("0.0.0.0", 0))
        self.ears.listen("tcp", tcp)
        tcp6 = socket.create_server(("::1", 0), family=socket.AF_INET6)
        self.ears.listen("tcp6", tcp6)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("0.0.0.0", 0))
        self.ears.datagrams("udp", udp)
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", 0))
            self.ears.call_port = probe.getsockname()[1]
        self.constant |= {
            "abstract": abstract, "tcp_port": str(tcp.getsockname()[1]), "address": own_address(),
            "tcp6_port": str(tcp6.getsockname()[1]), "udp_port": str(udp.getsockname()[1]),
            "listen_port": str(self.ears.call_port),
        }  # fmt: skip
        os.mkfifo(f"{self.base}/source/fifo")
        os.chmod(f"{self.base}/source/fifo", 0o666)
        self.ears.fifo("fifo", f"{self.base}/source/fifo")
        self.stack.callback(self.ears.stop)

    def _disk(self) -> None:
        """A disk, and a node of it that lies about and that everybody may open."""
        image = Path(f"{self.base}/root-only/disk")
        image.write_bytes(self.secrets["disk"].encode().ljust(1 << 20, b"\0"))
        device = loop_device(image, self.stack)
        os.mknod(f"{self.base}/source/disk", 0o060666, os.stat(device).st_rdev)
        os.chmod(f"{self.base}/source/disk", 0o666)

    def _beside(self, path: str) -> str:
        """A name beside a well-known one: at that itself every program of the machine would call."""
        path = f"{os.path.dirname(path)}-{secrets.token_hex(4)}"
        self.stack.callback(Path(path).unlink, missing_ok=True)
        return path

    def _setting(self) -> None:
        """A kernel setting that may be changed without a room, also inside a container."""
        if os.statvfs(SETTING).f_flag & os.ST_RDONLY:
            again = ["mount", "-o", "remount,bind,ro", "/proc/sys"]
            subprocess.run(["mount", "-o", "remount,bind,rw", "/proc/sys"], check=True)
            self.stack.callback(subprocess.run, again, check=True)
        before = SETTING.read_text()
        if before.startswith("capkeep-"):
            before = (
                "/sbin/poweroff\n"  # another run's word, which is not to stay: the kernel's own
            )
        self.stack.callback(lambda: SETTING.write_text(before))

    # -- one run

    def prepare(self, uid: int) -> dict[str, str]:
        """Fresh targets for one run of the hostile program as `uid`."""
        token = f"capkeep-{secrets.token_hex(8)}"
        self.tokens.append(token)
        source = f"{self.base}/source"
        for name in ("open", "own"):
            shutil.rmtree(f"{source}/{name}", ignore_errors=True)
            self._directory(f"source/{name}", 0o1777 if name == "open" else 0o755)
        os.chown(f"{source}/own", uid, uid)
        for name in ("overwrite", "mode", "times", "attribute", "delete", "rename", "link"):
            Path(f"{source}/own/{name}").write_text("as it was")
            os.chown(f"{source}/own/{name}", uid, uid)
        Path(f"{source}/writable").write_text("as it was")
        os.chmod(f"{source}/writable", 0o666)
        self.ears.heard.clear()
        self.ears.callers = 0
        victim, fd = self._victim(uid)
        Path(self.victim_log(uid)).write_text("")
        os.chown(self.victim_log(uid), uid, uid)
        return self.constant | {"token": token, "victim": str(victim.pid), "victim_fd": fd}

    def victim_log(self, uid: int) -> str:
        return f"{self.base}/outs/victim-{uid}"

    def _victim(self, uid: int) -> tuple[subprocess.Popen[bytes], str]:
        """A process of the attacker's own user that holds a secret and an open file."""
        if uid in self.victims:
            end(self.victims.pop(uid))
        child = subprocess.Popen(
            [PYTHON, "-I", "-S", "-c", VICTIM, self.secrets["victim"], self.victim_log(uid),
             f"{self.base}/source/writable", "victim"],
            user=uid, group=uid, extra_groups=[], stdout=subprocess.PIPE,
            env={"SECRET": self.secrets["victim"]},
        )  # fmt: skip
        self.victims[uid] = child
        assert child.stdout is not None
        return child, child.stdout.readline().decode().strip()

    def _end_victims(self) -> None:
        for child in self.victims.values():
            end(child)

    def _forget_tokens(self) -> None:
        for token in self.tokens:
            for place in ("/tmp", "/etc", "/dev/shm", "/", "/var/tmp"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{place}/{token}")

    def out(self, uid: int) -> str:
        """A writable place of the attacker's own, for runs without a room."""
        path = f"{self.base}/outs/{secrets.token_hex(4)}"
        os.mkdir(path, 0o700)
        os.chown(path, uid, uid)
        return path

    def program(self, name: str, targets: dict[str, str]) -> str:
        """The hostile program, executable, with its targets inside."""
        path = f"{self.base}/programs/{name}"
        text, start, rest = HOSTILE.read_text().partition(START)
        more = SERVICES.read_text().splitlines(keepends=True) if "booted" in targets else []
        more = [line for line in more if not line.startswith(BORROWED)]
        Path(path).write_text(
            f"#!/usr/bin/python3 -IS\nTARGETS = {targets!r}\n{text}\n{''.join(more)}{start}{rest}"
        )
        os.chmod(path, 0o755)
        return path


def loop_device(image: Path, stack: contextlib.ExitStack) -> str:
    """A loop device (loop(4)) with that content; its nodes are made where a container has none."""
    control = "/dev/loop-control"
    _node(control, 0o020600, os.makedev(10, 237), stack)
    for last in (False,) * 9 + (True,):
        with open(control) as file:
            number = fcntl.ioctl(file, LOOP_CTL_GET_FREE)
        device = f"/dev/loop{number}"
        _node(device, 0o060600, os.makedev(7, number), stack)
        if not subprocess.run(["losetup", device, str(image)], check=last).returncode:
            break  # otherwise somebody else has taken it meanwhile
    stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
    return device


def _node(path: str, mode: int, device: int, stack: contextlib.ExitStack) -> None:
    if not os.path.exists(path):
        os.mknod(path, mode, device)
        stack.callback(os.unlink, path)


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait(5)
    if child.stdout:
        child.stdout.close()


def file_handle(path: str) -> tuple[int, bytes]:
    """name_to_handle_at(2): kind and bytes."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    mount = ctypes.c_int()
    if libc.name_to_handle_at(-100, path.encode(), buffer, ctypes.byref(mount), 0) != 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    size, kind = struct.unpack_from("Ii", buffer.raw)
    return kind, buffer.raw[8 : 8 + size]


def own_address() -> str:
    """An address of this machine that is not on the loopback interface, where it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # TEST-NET-1: nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])


def tree_digest(path: str) -> str:
    """Names and contents below a directory, locks of a repository apart."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(path):
        folders.sort()
        if os.path.basename(folder) == "locks":
            continue
        for name in sorted(files):
            digest.update(f"{folder}/{name}".encode())
            digest.update(Path(folder, name).read_bytes())
    return digest.hexdigest()
