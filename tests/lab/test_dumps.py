"""Dumps by rooms that systemd starts, beside a server of the same user that must not notice."""

import json

from tests.lab.machine import Machine
from tests.lab.scenes import applied, last

# A server as PostgreSQL is one: a socket that tells people apart, and shared memory of its user.
SERVER = """
import os, socket, struct
shm = os.open("/dev/shm/server-memory", os.O_RDWR | os.O_CREAT, 0o600)
server = socket.socket(socket.AF_UNIX)
server.bind("/run/server/socket")
server.listen()
while True:
    caller, _ = server.accept()
    uid = struct.unpack("iii", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    os.stat("/dev/shm/server-memory")
    caller.sendall(b"all that there is, for %d\\n" % uid)
    caller.close()
"""
CLIENT = """#!/usr/bin/python3 -I
import socket
server = socket.socket(socket.AF_UNIX)
server.connect("/run/server/socket")
print(server.recv(1000).decode(), end="")
"""
DUMPS = """
[dumps.server]
kind = "command"
user = "games"
command = ["/usr/local/bin/client"]
socket = "/run/server/socket"

[dumps.streamed]
kind = "command"
user = "games"
command = ["/usr/local/bin/client"]
socket = "/run/server/socket"
stream = true

[dumps.app]
kind = "sqlite"
paths = ["/home/app/data/app.db"]
"""
JOB = """
[jobs.system]
repositories = ["local"]
include = ["/etc", "/srv/data"]
dumps = ["server", "streamed", "app"]
"""
MAKE = "import sqlite3; d = sqlite3.connect('/home/app/data/app.db');\
 d.execute('CREATE TABLE t (n int)'); d.execute('INSERT INTO t VALUES (7)'); d.commit()"


def test_dumps_of_a_server_and_of_a_home(machine: Machine) -> None:
    machine.ok("useradd", "-m", "app")
    machine.ok("install", "-d", "-o", "app", "/home/app/data")
    machine.ok("python3", "-c", MAKE)
    machine.ok("chown", "-R", "app:", "/home/app")
    machine.ok("usermod", "--append", "--groups", "audio", "games")  # as postgres is in ssl-cert
    machine.ok("install", "-d", "-o", "games", "/run/server")
    machine.write("/usr/local/bin/client", CLIENT, 0o755)
    machine.write("/usr/local/lib/server.py", SERVER, 0o644)
    # Not by User=: systemd would then count the server among those who use its user's memory.
    machine.ok("systemd-run", "--unit=server", "setpriv", "--reuid=games", "--regid=games",
               "--clear-groups", "python3", "/usr/local/lib/server.py")  # fmt: skip
    machine.wait(lambda: machine.run("test", "-S", "/run/server/socket").code == 0)
    machine.ok("install", "-d", "/etc/capkeep/conf.d")
    machine.write("/etc/capkeep/conf.d/dumps.toml", DUMPS)
    applied(machine, job=JOB)
    for _ in range(2):
        done = machine.run("capkeep", "run", seconds=120)
        assert done.code == 0, done
    assert last(machine)["state"] == "fresh"
    games = machine.ok("id", "-u", "games").strip()
    machine.ok("capkeep", "restore", "latest", "/var/lib/capkeep/dumps", "--to", "/srv/back")
    base = "/srv/back/var/lib/capkeep/dumps"
    assert machine.read(f"{base}/server/last/dump") == f"all that there is, for {games}\n"
    copy = json.loads(machine.read(f"{base}/app/last/manifest.json"))["files"][0]
    assert (copy["database"], copy["rows"]) == ("/home/app/data/app.db", 1)
    listed = json.loads(machine.ok("capkeep", "snapshots", "--json"))[0]["snapshots"]
    streams = [s["id"] for s in listed if s["paths"] == ["/streamed.dump"]]
    assert len(streams) == 2
    machine.ok("capkeep", "restore", streams[0], "/streamed.dump", "--to", "/srv/one")
    assert machine.read("/srv/one/streamed.dump") == f"all that there is, for {games}\n"
    machine.ok("capkeep", "audit", seconds=120)
    assert machine.ok("systemctl", "--failed", "--quiet") == ""
    machine.ok("systemctl", "stop", "server.service")
    down = machine.run("capkeep", "run", seconds=120)
    assert down.code == 1, down
    assert "dump server: its output: client ended with 1" in down.out
    machine.ok("capkeep", "remove")
    assert machine.run("test", "-e", "/var/lib/capkeep/dumps").code != 0
    machine.ok("id", "app")
    machine.ok("id", "games")
