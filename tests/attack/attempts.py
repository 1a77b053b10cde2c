"""Every attempt of the hostile program: what it is called, and how its success shows outside."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.attack.world import LIMITS, SETTING, Seen, World


class Aftermath(NamedTuple):
    """All that can be looked at after a run."""

    world: World
    targets: dict[str, str]
    seen: Seen
    out: str  # the attacker's writable place, as the machine sees it
    said: str  # what the attempt claims to have got
    vault_dir: str
    served_after: bool  # whether the vault answers somebody else


Look = Callable[[Aftermath], bool]


class Attempt(NamedTuple):
    """One way out."""

    name: str
    title: str
    group: str
    succeeded: Look
    only_outside: bool = False  # the program cannot know whether it did harm


def file_at(path: str) -> Look:
    """A file that is there now; `{…}` are targets."""
    return lambda a: os.path.lexists(path.format_map(a.targets))


def changed(name: str) -> Look:
    """A file of the source that is no longer as it was."""
    return lambda a: (
        not Path(a.targets["source"], name).exists()
        or (Path(a.targets["source"], name).read_text() != "as it was")
    )


def heard(name: str) -> Look:
    """The word of this very run arrived."""
    return lambda a: a.targets["token"].encode() in a.world.ears.heard.get(name, b"")


def seen(thing: str) -> Look:
    return lambda a: thing in a.seen.things


def knows(secret: str) -> Look:
    """It said a word that only the harness and the place attacked know."""
    return lambda a: a.world.secrets[secret] in a.said


def signalled(number: int) -> Look:
    def look(a: Aftermath) -> bool:
        log = Path(a.world.victim_log(a.world.current_uid)).read_text().split()
        return str(number) in log

    return look


def own(name: str) -> Callable[[Aftermath], os.stat_result]:
    return lambda a: os.stat(f"{a.targets['source']}/own/{name}")


def setid_left(a: Aftermath) -> bool:
    entries = [e for e in os.scandir(a.out) if a.targets["token"] in e.name] if a.out else []
    return any(e.stat(follow_symlinks=False).st_mode & 0o6000 for e in entries)


def vault_misses_something(a: Aftermath) -> bool:
    there = {p.name for p in Path(a.vault_dir).rglob("*")}
    wanted = {a.targets[k] for k in ("snapshot_id", "pack_id", "key_id")} | {"config"}
    return not wanted <= there


def vault_overwritten(a: Aftermath) -> bool:
    """The false name's file apart, which is new."""
    word = a.targets["token"].encode()
    files = (p for p in Path(a.vault_dir).rglob("*") if p.is_file() and p.name != "ab" * 32)
    return any(word in p.read_bytes() for p in files)


def false_name(a: Aftermath) -> bool:
    return any(p.name == "ab" * 32 for p in Path(a.vault_dir).rglob("*")) if a.vault_dir else False


def text_of(path: str) -> str:
    """A file's content; nothing where there is no file."""
    return Path(path).read_text() if os.path.exists(path) else ""


def climbed(a: Aftermath) -> bool:
    token = a.targets["token"]
    places = [f"/tmp/{token}", f"/{token}", f"{a.targets['source']}/open/{token}"]
    above = Path(a.vault_dir).parent.rglob(f"{token}*") if a.vault_dir else ()
    return any(os.path.lexists(p) for p in places) or any(True for _ in above)


ATTEMPTS = (
    Attempt("create-in-tmp", "create a file in /tmp", "write", file_at("/tmp/{token}")),
    Attempt("create-in-shm", "create a file in /dev/shm", "write", file_at("/dev/shm/{token}")),
    Attempt("create-in-source", "create a file in a world-writable source directory", "write",
            file_at("{source}/open/{token}")),
    Attempt("write-to-etc", "create a file in /etc", "write", file_at("/etc/{token}")),
    Attempt("overwrite-own-file", "overwrite a source file of its own user", "write",
            changed("own/overwrite")),
    Attempt("overwrite-writable-file", "overwrite a world-writable source file", "write",
            changed("writable")),
    Attempt("change-mode", "chmod a source file", "write",
            lambda a: own("mode")(a).st_mode & 0o777 == 0o777),
    Attempt("change-times", "change a source file's times", "write",
            lambda a: own("times")(a).st_mtime == 1),
    Attempt("set-attribute", "set an extended attribute on a source file", "write",
            lambda a: "user.token" in os.listxattr(f"{a.targets['source']}/own/attribute")),
    Attempt("delete-file", "delete a source file", "write", changed("own/delete")),
    Attempt("rename-file", "rename a source file", "write", changed("own/rename")),
    Attempt("link-into-cache", "hard-link a source file into its cache", "write",
            lambda a: own("link")(a).st_nlink > 1),
    Attempt("write-to-fifo", "write to a world-writable FIFO on the source", "write", heard("fifo")),
    Attempt("write-kernel-setting", "write a kernel setting in /proc/sys", "write",
            lambda a: a.targets["token"] in SETTING.read_text()),
    Attempt("leave-setuid-program", "leave a setuid program in its cache", "write", setid_left),
    Attempt("make-device-node", "make a device node in its cache", "write",
            file_at("{out}/node-{token}")),
    Attempt("read-disk-through-node", "read the raw disk through a device node on the source", "write",
            knows("disk")),
    Attempt("delete-from-repository-disk", "delete a pack on the repository's disk", "write",
            lambda a: not os.path.exists(a.targets["pack"])),
    Attempt("read-secret-file", "read another room's secret file", "secrets", knows("file")),
    Attempt("read-other-rooms-cache", "read another room's cache", "secrets", knows("cache")),
    Attempt("see-other-processes", "see processes outside", "secrets",
            lambda a: a.said == a.targets["victim"]),
    Attempt("read-process-memory", "read a secret in /proc/PID/mem", "secrets",
            lambda a: knows("victim")(a) or knows("password")(a)),
    Attempt("read-memory-by-call", "read a secret by process_vm_readv", "secrets",
            lambda a: knows("victim")(a) or knows("password")(a)),
    Attempt("read-environment", "read a secret in /proc/PID/environ", "secrets",
            lambda a: knows("victim")(a) or knows("password")(a)),
    Attempt("trace-process", "ptrace another process of its user", "secrets", seen("traced")),
    Attempt("steal-descriptor", "take a descriptor of another process", "secrets",
            lambda a: a.said.startswith(("/", "socket:", "pipe:"))),
    Attempt("look-at-descriptors", "look into /proc/PID/fd", "secrets",
            lambda a: a.said.startswith(("/", "socket:", "pipe:"))),
    Attempt("open-by-handle", "open a hidden secret by its inode (open_by_handle_at)", "secrets",
            knows("file")),
    Attempt("signal-process", "signal another process (kill)", "signals", signalled(10)),
    Attempt("signal-by-thread-and-queue", "signal by tgkill and rt_sigqueueinfo", "signals",
            signalled(12)),
    Attempt("signal-by-file-owner", "signal by F_SETOWN and SIGIO", "signals", signalled(1)),
    Attempt("socket-on-source", "connect to a unix socket on the source", "sockets",
            heard("listener")),
    Attempt("abstract-socket", "connect to an abstract unix socket", "sockets", heard("abstract")),
    Attempt("message-bus", "connect to D-Bus", "sockets", heard("bus")),
    Attempt("name-service", "connect to the name service (nscd)", "sockets", heard("names")),
    Attempt("other-rooms-door", "connect to another room's socket", "sockets", heard("door")),
    Attempt("tcp-to-loopback", "TCP to the machine's loopback", "sockets", heard("tcp")),
    Attempt("tcp-to-address", "TCP to the machine's address", "sockets", heard("tcp")),
    Attempt("tcp-over-ipv6", "TCP over IPv6", "sockets", heard("tcp6")),
    Attempt("udp", "UDP", "sockets", heard("udp")),
    Attempt("raw-socket", "open a raw socket", "sockets", lambda a: "family 2" in a.said),
    Attempt("packet-socket", "open a packet socket", "sockets", seen("family:17")),
    Attempt("kernel-socket", "open a netlink socket", "sockets", seen("family:16")),
    Attempt("vm-socket", "open a vsock", "sockets", seen("family:40")),
    Attempt("crypto-socket", "open the kernel's crypto socket (AF_ALG)", "sockets",
            seen("family:38")),
    Attempt("listen-for-others", "listen on TCP for others to come", "sockets",
            lambda a: a.world.ears.callers > 0),
    Attempt("open-a-door-in-cache", "listen on a unix socket in its cache", "sockets",
            file_at("{out}/door")),
    Attempt("setuid-program", "start a setuid-root program", "privileges",
            file_at("{root_only}/{token}")),
    Attempt("capable-program", "start a program with file capabilities", "privileges",
            file_at("{root_only}/cap-{token}")),
    Attempt("new-user-namespace", "make a user namespace (unshare, clone, clone3)", "privileges",
            seen("user-namespace")),
    Attempt("mount-something", "mount a filesystem", "privileges",
            lambda a: f"mount:{a.targets['token']}" in a.seen.things),
    Attempt("store-in-keyring", "store a key in its user's keyring", "privileges", seen("keyring")),
    Attempt("load-bpf", "use bpf", "privileges", seen("anon_inode:bpf-map")),
    Attempt("set-up-io-uring", "use io_uring", "privileges", seen("anon_inode:[io_uring]")),
    Attempt("watch-performance", "watch the whole machine with perf", "privileges",
            seen("anon_inode:[perf_event]")),
    Attempt("handle-page-faults", "use userfaultfd", "privileges",
            seen("anon_inode:[userfaultfd]")),
    Attempt("use-the-32-bit-calls", "open a socket by 32-bit system calls", "privileges",
            lambda a: a.said.startswith("socket:")),
    Attempt("delete-from-vault", "delete a snapshot, pack, key or the config", "repository",
            vault_misses_something),
    Attempt("overwrite-in-vault", "overwrite a pack, key, snapshot or the config", "repository",
            vault_overwritten),
    Attempt("store-under-false-name", "store a snapshot, key, index or lock under a false name", "repository", false_name),
    Attempt("climb-out-of-vault", "write outside the repository by its path", "repository", climbed),
    Attempt("silence-the-vault", "silence the repository's server by half-open and endless requests",
            "repository", lambda a: not a.served_after, only_outside=True),
    Attempt("fill-memory", "use more memory than granted", "limits",
            lambda a: a.seen.memory > LIMITS["memory"] * 5 // 4),
    Attempt("fill-processes", "start more processes than granted", "limits",
            lambda a: a.seen.processes > LIMITS["processes"]),
    Attempt("fill-threads", "start more threads than granted", "limits",
            lambda a: a.seen.threads > LIMITS["processes"]),
    Attempt("fill-descriptors", "open more files than granted", "limits",
            lambda a: a.seen.descriptors > LIMITS["descriptors"]),
    Attempt("fill-disk", "fill the disk that holds its cache", "limits",
            lambda a: a.said.startswith("full")),
)  # fmt: skip
# What there is to attack only where systemd runs the machine.
BOOTED_ATTEMPTS = (
    Attempt("bus-start-unit", "start a unit of root's over D-Bus (StartTransientUnit)", "services",
            file_at("{root_only}/bus-{token}")),
    Attempt("bus-read-environment", "read another unit's environment over D-Bus", "services",
            knows("unit")),
    Attempt("bus-hold-shutdown", "hold up the machine's shutdown over D-Bus (logind)", "services",
            seen("inhibitor")),
    Attempt("bus-name-machine", "name the machine over D-Bus (hostnamed)", "services",
            lambda a: a.targets["token"] in text_of("/etc/machine-info")),
    Attempt("bus-ask-polkit", "ask polkit over D-Bus", "services",
            lambda a: a.said.startswith("answered")),
    Attempt("managers-own-socket", "connect to the manager's own socket (/run/systemd/private)",
            "services", lambda a: a.said == "connected"),
    Attempt("varlink", "call a varlink service below /run/systemd", "services",
            lambda a: "io.system" in a.said),
    Attempt("systemd-run", "systemd-run", "services", file_at("{root_only}/run-{token}")),
    Attempt("systemd-run-user", "systemd-run --user", "services", file_at("{source}/open/user-{token}")),
    Attempt("journal-native", "write to the journal (/run/systemd/journal/socket)", "services",
            seen("journal:native")),
    Attempt("journal-stdout", "write to the journal (/run/systemd/journal/stdout)", "services",
            seen("journal:stdout")),
    Attempt("journal-dev-log", "write to the journal (/run/systemd/journal/dev-log)", "services",
            seen("journal:dev-log")),
    Attempt("notify", "tell the manager that it is ready (/run/systemd/notify)", "services",
            lambda a: a.said == "sent"),
    Attempt("other-units-credentials", "read another unit's credentials (/run/credentials)",
            "services", knows("credential")),
    Attempt("vaults-other-door", "connect to its vault with a right that it has not", "services",
            seen("accepted:vault")),
    Attempt("another-rooms-door", "ask another room for its work", "services",
            seen("accepted:room")),
    Attempt("runners-door", "ask the runner for a run", "services", seen("accepted:runner")),
    Attempt("through-another-root", "read a secret below another process's /proc/PID/root",
            "services", knows("file")),
    Attempt("leave-unit-file", "leave a unit file in /etc/systemd/system", "services",
            file_at("/etc/systemd/system/{token}.service")),
    Attempt("leave-unit-in-memory", "leave a unit file in /run/systemd/system", "services",
            file_at("/run/systemd/system/{token}.service")),
    Attempt("change-control-group", "change a limit of another control group", "services",
            lambda a: text_of(f"{a.targets['control_group']}/cgroup.max.depth") == "7\n"),
)  # fmt: skip
BY_NAME = {a.name: a for a in (*ATTEMPTS, *BOOTED_ATTEMPTS)}
