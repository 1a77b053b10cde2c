"""What a target gets that has no capkeep: a login, its one key, and a unit with sftp-server; pure.

The key starts nothing but a connection to a socket. Behind that systemd starts an sftp-server that may
read every file it sees, and sees those alone that the server's job names; it writes nothing, has no
network, and ends with the connection. The script is POSIX shell for root on the target.
"""

import hashlib
import shlex
from typing import Final

from capkeep.config.targets import SFTP_USER
from capkeep.host import unit_text
from capkeep.host.enroll_script import Enrolment

LOGIN: Final = SFTP_USER
SLACK_SECONDS: Final = 3600  # more than a server needs beside its job's time
HASHED: Final = 8  # hexadecimal digits
HOME: Final = f"/var/lib/{LOGIN}"
SERVER: Final = "/usr/lib/openssh/sftp-server"
# Where a target's reader finds it (docs/how-to/pull-sftp.md), as capkeep there would make it.
CANARY: Final = "/etc/capkeep/canary"

# With what every Debian has (perl-base). One process for each direction: one for both could wait for
# sftp-server to read while that waits to be read.
CONNECT: Final = r"""#!/usr/bin/perl
# Joins its standard input and output to a socket of this host.
use strict;
use Socket;
socket(my $there, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
connect($there, pack_sockaddr_un($ARGV[0])) or die "sftp-server cannot be reached: $!\n";
sub carry {
    my ($from, $to) = @_;
    while (my $got = sysread($from, my $data, 262144)) {
        for (my $at = 0; $at < $got;) {
            my $done = syswrite($to, $data, $got - $at, $at);
            exit 1 unless defined $done;
            $at += $done;
        }
    }
}
defined(my $asking = fork) or die "fork: $!\n";
if (!$asking) { carry(\*STDIN, $there); shutdown($there, 1); exit 0 }
carry($there, \*STDOUT);
kill 'TERM', $asking;
"""


def own_name(enrolment: Enrolment) -> str:
    """By which all that one server gets here is known, and nothing that another one gets.

    Two servers may have one short name in two domains.
    """
    number = hashlib.sha256(enrolment.server.encode()).hexdigest()[:HASHED]
    return f"{enrolment.name}-{number}"


def socket_path(enrolment: Enrolment) -> str:
    """Whoever logs in connects to it."""
    return f"/run/{LOGIN}-{own_name(enrolment)}.sock"


def root(enrolment: Enrolment) -> str:
    """The directory that sftp-server takes for the root."""
    return f"{HOME}/root-{own_name(enrolment)}"


def units(enrolment: Enrolment) -> dict[str, str]:
    """The socket and what it starts, by name."""
    unit = f"{LOGIN}-{own_name(enrolment)}"
    who = unit_text.plain(f"capkeep: sftp-server for {enrolment.server}")
    door = [
        "[Unit]", f"Description={who}", "", "[Socket]", f"ListenStream={socket_path(enrolment)}",
        "Accept=yes", "MaxConnections=16", f"SocketUser={LOGIN}", "SocketMode=0600", "RemoveOnStop=yes",
        "", "[Install]", "WantedBy=sockets.target",
    ]  # fmt: skip
    service = [
        "[Unit]", f"Description={who} (%i)", "CollectMode=inactive-or-failed", "", "[Service]",
        f"ExecStart={SERVER} -e -R -d /", "StandardInput=socket", "StandardOutput=socket",
        "StandardError=journal", f"User={LOGIN}", "CapabilityBoundingSet=CAP_DAC_READ_SEARCH",
        "AmbientCapabilities=CAP_DAC_READ_SEARCH",
        # A server that has vanished without a word is not noticed for hours, and takes up a connection.
        f"RuntimeMaxSec={enrolment.timeout_seconds + SLACK_SECONDS}", *HARDENING, *_shown(enrolment),
    ]  # fmt: skip
    found = {f"{unit}.socket": door, f"{unit}@.service": service}
    made = unit_text.plain(f"# Made by `capkeep enroll` on {enrolment.server}.")
    return {name: "\n".join((made, *lines, "")) for name, lines in found.items()}


# Nothing in it hides a file below a path that is to be kept.
HARDENING: Final = (
    "NoNewPrivileges=yes", "PrivateNetwork=yes", "IPAddressDeny=any", "RestrictAddressFamilies=none",
    "ProtectSystem=strict", "PrivateMounts=yes", "PrivateIPC=yes", "RemoveIPC=yes",
    "PrivateDevices=yes", "DevicePolicy=closed", "ProtectControlGroups=yes",
    "ProtectKernelTunables=yes", "ProtectKernelLogs=yes", "ProtectProc=invisible",
    "ProcSubset=pid", "ProtectClock=yes", "ProtectHostname=yes", "RestrictNamespaces=yes",
    "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes", "KeyringMode=private", "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM", "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources @setuid @keyring @memlock @aio",
    "UMask=0077", "LimitCORE=0", "TasksMax=8",
)  # fmt: skip
NEEDED: Final = (
    "/usr", "-/lib", "-/lib64", "-/lib32", "-/etc/ld.so.cache", "/etc/passwd", "/etc/group",
    "-/etc/nsswitch.conf",
)  # fmt: skip


def _shown(enrolment: Enrolment) -> list[str]:
    """What the job names, and what sftp-server itself needs; all, if all is named.

    Its root directory is one of its own. systemd makes in it what it puts there (systemd.exec(5)).
    """
    if "/" in enrolment.include:
        return []
    paths = [*NEEDED, *(f"-{unit_text.word(p)}" for p in enrolment.include)]
    paths += [CANARY] if enrolment.canary else []
    return [
        f"RootDirectory={root(enrolment)}",
        "MountAPIVFS=yes",
        *(f"BindReadOnlyPaths={path}" for path in paths),
    ]


def key_line(enrolment: Enrolment) -> str:
    """The server's key, bound to that one connection (sshd(8), AUTHORIZED_KEYS)."""
    return f"{_bound(enrolment)} {enrolment.key}"


def _bound(enrolment: Enrolment) -> str:
    """What this server's keys have before them, whichever they are, and those of no other."""
    return f'restrict,command="exec {HOME}/connect {socket_path(enrolment)}"'


def script(enrolment: Enrolment, *, remove: bool = False, dry_run: bool = False) -> str:
    """The whole of it."""
    files = {f"/etc/systemd/system/{name}": text for name, text in units(enrolment).items()}
    socket = next(name for name in units(enrolment) if name.endswith(".socket"))
    values = {
        "login": LOGIN, "home": HOME, "server": SERVER, "socket": socket, "canary": CANARY,
        "key": key_line(enrolment), "mark": enrolment.key.split()[1], "connect": CONNECT,
        "bound": _bound(enrolment),
        "root": root(enrolment), "with_canary": "yes" if enrolment.canary else "",
    }  # fmt: skip
    given = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    put = "".join(f"  put {shlex.quote(p)} 0644 {shlex.quote(t)}\n" for p, t in files.items())
    take = "".join(f"  rm -f {shlex.quote(path)}\n" for path in files)
    verb = "remove_it" if remove else "write_it"
    act = f"show {verb}" if dry_run else verb
    return (
        "#!/bin/sh\n# Read it, then run it as root: sh THIS-FILE\nset -eu\n"
        f"{given}{_FUNCTIONS}\nput_units() {{\n{put}}}\n\ntake_units() {{\n{take}}}\n\nmain {act}\n"
    )


_FUNCTIONS: Final = r"""
fail() {
  printf 'enroll: %s\n' "$@" >&2
  exit 4
}

put() {
  printf %s "$3" >"$1.new"
  chmod "$2" "$1.new"
  mv "$1.new" "$1"
  echo "wrote $1"
}

# Those of others: of this server neither the key that it has now, nor any that it had.
keys() {
  if [ -f "$home/.ssh/authorized_keys" ]; then
    grep -vF -e " $mark" -e "$bound" "$home/.ssh/authorized_keys" || :
  fi
}

write_it() {
  [ -x "$server" ] || fail "there is no $server here: apt-get install openssh-sftp-server"
  [ -d /run/systemd/system ] || fail "systemd does not run this host"
  getent passwd "$login" >/dev/null ||
    useradd --system --home-dir "$home" --no-create-home --shell /bin/sh --password '*' "$login"
  mkdir -p "$home/.ssh" "$root"
  chown 0:0 "$home" "$home/.ssh"
  chmod 0755 "$home" "$home/.ssh"
  put "$home/connect" 0755 "$connect"
  if [ -n "$with_canary" ] && [ ! -s "$canary" ]; then
    mkdir -p "$(dirname "$canary")"
    (umask 077; head -c 32 /dev/urandom | od -An -tx1 >"$canary")
    echo "wrote $canary"
  fi
  put_units
  systemctl daemon-reload
  systemctl enable --quiet "$socket"
  systemctl restart "$socket"
  put "$home/.ssh/authorized_keys" 0644 "$(keys)
$key
"
}

remove_it() {
  if [ -d "$home/.ssh" ]; then put "$home/.ssh/authorized_keys" 0644 "$(keys)
"; fi
  systemctl disable --quiet --now "$socket" || :
  take_units
  systemctl daemon-reload
  echo "this server comes no more; user $login stays, without a key of its own"
}

show() {
  echo "would $1, with this key and these units:"
  printf '%s\n' "$key"
  put() { echo "--- $1"; printf '%s\n' "$3"; }
  if [ "$1" = write_it ]; then put_units; fi
}

main() {
  umask 022
  PATH=/usr/sbin:/usr/bin:/sbin:/bin
  export PATH
  [ "$(id -u)" = 0 ] || fail "this is for root: sudo sh THIS-FILE"
  "$@"
}
"""
