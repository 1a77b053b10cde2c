"""What somebody tries who has a server's login key for a target: as shell scripts, run on the server.

In each, `S` is ssh with the key that is tried; whatever counts as success prints G42T or makes
the target know it. `$T` is the target's login.
"""

import time
from typing import Final, NamedTuple

from tests.lab.machine import Machine
from tests.lab.network import ADDRESSES
from tests.lab.pulled import LOGIN

HEAD: Final = f"""\
T={LOGIN}@{ADDRESSES[1]}
O="-F none -i $KEY -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile=/root/stolen-hosts"
S() {{ timeout -k1 8 ssh $O "$@" </dev/null; }}
# A connection that stays for a while, with a session in which nothing is said.
STAY() {{ sleep "$STAY" | timeout -k1 30 ssh $O "$@"; }}
# Ask a port of ours as soon as there is one, through such a connection.
THROUGH() {{ port=$1; shift; STAY "$@" & while kill -0 $!; do ASK $port && break; sleep 0.2; done 2>/dev/null; }}
ASK() {{ python3 -c 'import socket,sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 3)
s.settimeout(3)
if sys.argv[2:]:  # through a proxy (RFC 1928)
    s.sendall(b"\\5\\1\\0"); s.recv(2)
    s.sendall(b"\\5\\1\\0\\1\\x7f\\0\\0\\1" + int(sys.argv[2]).to_bytes(2, "big")); s.recv(10)
print(s.recv(100).decode())' "$@"; }}
cd "$(mktemp -d)"
"""
INNER: Final = 7001  # the port that only the target itself may reach
# Services of the target that only who is in it can reach: on a port and on a socket.
SERVICE: Final = """
import os, socket, threading
def serve(listener):
    while True:
        with listener.accept()[0] as sock:
            sock.sendall(b"G42T")
socket_path = "/run/inner"
threading.Thread(target=serve, args=(socket.create_server(("127.0.0.1", 7001)),)).start()
unix = socket.create_server(socket_path, family=socket.AF_UNIX)
os.chmod(socket_path, 0o666)
serve(unix)
"""


class Attempt(NamedTuple):
    """One thing to try. `seen` is looked at on the target while it is tried, or right after."""

    name: str
    script: str
    seen: str = "false"  # succeeds if the target saw it


ATTEMPTS: Final = (
    Attempt("a shell", "echo 'echo G$((6*7))T' | timeout 5 ssh $O $T"),
    Attempt("another command", "S $T 'echo G$((6*7))T'"),
    Attempt("a command in place of the fixed one", "S $T -- /bin/sh -c \"'echo G\\$((6*7))T'\""),
    Attempt("a terminal", "STAY -tt $T", "ls /dev/pts | grep -qx '[0-9]*'"),
    Attempt("a file by sftp", "echo 'get /etc/passwd x' | timeout 8 sftp -q $O -b - $T; grep -q root x && echo G42T"),
    Attempt("writing by sftp", "echo word >x; echo 'put x /tmp/by-sftp' | timeout 8 sftp -q $O -b - $T",
            "test -e /tmp/by-sftp"),
    Attempt("a file by scp", "timeout 8 scp -q $O $T:/etc/passwd x; grep -q root x && echo G42T"),
    Attempt("a file by the old scp", "timeout 8 scp -q -O $O $T:/etc/passwd x; grep -q root x && echo G42T"),
    Attempt("a way in to a port (-W)", f"S -W 127.0.0.1:{INNER} $T"),
    Attempt("a way in to a port (-L)", f"THROUGH 9001 -L 9001:127.0.0.1:{INNER} $T"),
    Attempt("a way in to a socket", "THROUGH 9002 -L 9002:/run/inner $T"),
    Attempt("a way in to anything (-D)", f"THROUGH '9003 {INNER}' -D 9003 $T"),
    Attempt("a listener there (-R)", "STAY -R 9004:127.0.0.1:22 $T", "ss -ltn | grep -q :9004"),
    Attempt("a socket there (-R)", "STAY -R /tmp/by-forward:127.0.0.1:22 $T", "test -e /tmp/by-forward"),
    Attempt("the agent", "eval $(ssh-agent) >/dev/null; STAY -A $T",
            "ls /tmp/ssh-*/agent.* /var/lib/capkeep/answerer/.ssh/agent/* | grep -q ."),
    Attempt("X11", "DISPLAY=:7 STAY -X $T", "ss -ltn | grep -q :6010"),
    Attempt("a module of another's", "S -o SetEnv=PYTHONPATH=/srv/evil $T python3 -m json.tool",
            "test -e /tmp/by-module"),
    Attempt("the user's rc", "STAY $T", "test -e /tmp/by-rc"),
)  # fmt: skip
BY_NAME: Final = {attempt.name: attempt for attempt in ATTEMPTS}

CONTROL: Final = "/root/control"  # a key of the same login's that nothing is said of


def prepare(server: Machine, target: Machine, home: str) -> None:
    """Let everything succeed that a key is not kept from: a key of the same login, and what it asks for."""
    server.ok("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", CONTROL)
    keys = f"{home}/.ssh/authorized_keys"
    target.write(keys, f"{target.read(keys)}{server.read(f'{CONTROL}.pub')}")
    target.write(f"{home}/.ssh/rc", "touch /tmp/by-rc\n")
    target.write("/srv/evil/json.py", "open('/tmp/by-module', 'w').close()\n")
    # Whoever forwards X11 on a host without X needs this one program to be there.
    target.write("/usr/bin/xauth", "#!/bin/sh\n", 0o755)
    target.write("/etc/ssh/sshd_config.d/lab.conf", "AcceptEnv PYTHON*\n")
    target.ok("systemctl", "restart", "ssh")
    target.ok("systemd-run", "-q", "--unit=inner", "python3", "-c", SERVICE)
    server.write(
        "/root/stolen-hosts", f"{ADDRESSES[1]} {target.read('/etc/ssh/ssh_host_ed25519_key.pub')}"
    )


def succeeds(server: Machine, target: Machine, attempt: Attempt, key: str) -> bool:
    """Whether an attempt gets anywhere with that key; without the control's it may not take long."""
    target.ok("sh", "-c", "rm -rf /tmp/by-*")
    stay = 20 if key == CONTROL else 2
    server.ok("systemd-run", "-q", "--collect", "--unit=attempt", "--setenv=HOME=/root",
              f"--setenv=KEY={key}", f"--setenv=STAY={stay}", "-p", "StandardOutput=truncate:/run/attempt",
              "bash", "-c", HEAD + attempt.script)  # fmt: skip
    try:
        while True:
            over = server.run("systemctl", "is-active", "-q", "attempt").code != 0
            if (
                "G42T" in server.read("/run/attempt")
                or not target.run("sh", "-c", attempt.seen).code
            ):
                return True
            if over:
                return False
            time.sleep(0.1)
    finally:
        server.run("systemctl", "stop", "attempt")
