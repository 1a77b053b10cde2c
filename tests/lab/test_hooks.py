"""Hooks by rooms that systemd starts: what they are granted, and that there is nothing else."""

from tests.lab.machine import Machine
from tests.lab.scenes import applied, last, messages

# A service of root's that does one thing for whoever may connect: a source comes or goes.
SOCKET = """
[Socket]
ListenStream=/run/helper/socket
SocketUser=app
SocketMode=0600
DirectoryMode=0755
Accept=yes
"""
SERVICE = """
[Service]
ExecStart=/bin/sh -c '[ -e /srv/frozen/now ] && rm -r /srv/frozen/now || cp -a /srv/data /srv/frozen/now; echo done by $(id -un)'
StandardInput=socket
"""
# What a hook may do, it does; what it may not is tried, and each success is a line.
HOOK = r"""#!/usr/bin/python3 -I
import os, pathlib, socket, sys
print("user", os.getuid(), os.environ["CAPKEEP_HOOK"], os.environ["CAPKEEP_OUTCOME"])
def attempt(name, deed):
    try:
        print("GOT", name, deed())
    except OSError as error:
        print("not", name, error.strerror)
def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect(address)
        return sock.recv(100).decode().strip()
pathlib.Path("/home/app/state/noted").write_text(os.environ["CAPKEEP_SNAPSHOTS"])
attempt("helper", lambda: connect(socket.AF_UNIX, "/run/helper/socket"))
attempt("shadow", lambda: open("/etc/shadow").read(9))
attempt("hostname", lambda: open("/etc/hostname").read())
attempt("mine", lambda: open("/home/app/secret").read())
attempt("beside", lambda: open("/home/app/beside", "w").write("x"))
attempt("usr", lambda: open("/usr/x", "w").write("x"))
attempt("tmp", lambda: open("/tmp/x", "w").write("x"))
attempt("records", lambda: open("/var/lib/capkeep/records/records.db", "rb").read(9))
attempt("secrets", lambda: open("/etc/capkeep/secrets/local").read())
attempt("rooms", lambda: connect(socket.AF_UNIX, "/run/capkeep/run.sock"))
attempt("bus", lambda: connect(socket.AF_UNIX, "/run/dbus/system_bus_socket"))
attempt("systemd", lambda: connect(socket.AF_UNIX, "/run/systemd/private"))
attempt("network", lambda: connect(socket.AF_INET, ("127.0.0.1", 7)))
attempt("root", lambda: os.setuid(0))
"""
# What may read everybody's files can have no socket, by which it could pass them on.
SOCKETS = """
import socket
for make in (socket.socket, socket.socketpair):
    try:
        print("GOT", make())
    except PermissionError:
        print("refused", make.__name__)
"""
HOOKS = """
[hooks.app]
command = ["/usr/local/bin/hook"]
user = "app"
read = ["/home/app"]
write = ["/home/app/state"]
sockets = ["/run/helper"]

[hooks.reads]
command = ["/bin/sh", "-c", "cat /srv/private/word; python3 /srv/sockets; cat /etc/shadow"]
user = "games"
read = ["/srv/private", "/srv/sockets"]
capabilities = ["CAP_DAC_READ_SEARCH"]
optional = true
"""
JOB = """
[jobs.system]
repositories = ["local"]
include = ["/etc", "/srv/frozen/now"]
before = ["reads", "app"]
on-success = ["app"]
"""
MAY = {"helper", "mine"}


def test_a_hook_has_what_it_is_granted(machine: Machine) -> None:
    machine.ok("useradd", "-m", "app")
    machine.ok("usermod", "--append", "--groups", "audio", "app")
    machine.ok("install", "-d", "-o", "app", "/home/app/state")
    machine.write("/home/app/secret", "mine", 0o600)
    machine.ok("chown", "app", "/home/app/secret")
    machine.ok("install", "-d", "-m", "700", "/srv/private", "/srv/frozen")
    machine.write("/srv/private/word", "seen by the one that reads\n", 0o600)
    machine.write("/usr/local/bin/hook", HOOK, 0o755)
    machine.write("/srv/sockets", SOCKETS, 0o644)
    machine.write("/etc/systemd/system/helper.socket", SOCKET)
    machine.write("/etc/systemd/system/helper@.service", SERVICE)
    machine.ok("systemctl", "start", "helper.socket")
    machine.ok("install", "-d", "/etc/capkeep/conf.d")
    machine.write("/etc/capkeep/conf.d/hooks.toml", HOOKS)
    applied(machine, job=JOB)
    done = machine.run("capkeep", "run", "--json", seconds=120)
    told = messages(done)
    said = [str(m["text"]) for m in told if m["event"] == "message"]
    assert done.code == 0, [m["text"] for m in told if m["event"] in ("message", "end", "warning")]
    uid = machine.ok("id", "-u", "app").strip()
    assert [line for line in said if line.startswith("user")] == [
        f"user {uid} before", f"user {uid} on-success complete",
    ]  # fmt: skip
    tried = [line.split() for line in said if line.startswith(("GOT ", "not "))]
    assert len(tried) == 28
    assert {words[1] for words in tried if words[0] == "GOT"} == MAY, said
    assert "GOT helper done by root" in said
    snapshot = next(m["snapshot"] for m in told if m["event"] == "step-end" and m["snapshot"])
    assert machine.read("/home/app/state/noted") == f"local:{snapshot}"
    # It reads what it sees, whoever's that is, and sees nothing else.
    assert "seen by the one that reads" in said
    assert {"refused socket", "refused socketpair"} <= set(said)
    ends = {(m["kind"], m["repository"]): m for m in told if m["event"] == "step-end"}
    assert "shadow: No such file" in str(ends["before", "reads"]["text"])
    assert last(machine)["state"] == "fresh"
    assert machine.ok("ls", "/srv/frozen") == ""
    machine.ok("capkeep", "restore", "latest", "/srv/frozen/now", "--to", "/srv/back")
    assert machine.read("/srv/back/srv/frozen/now/word") == "kept\n"
    audited = machine.ok("capkeep", "audit", seconds=120)
    assert "hook-app" in audited
    assert machine.ok("systemctl", "--failed", "--quiet") == ""
    machine.ok("capkeep", "remove")
    assert "hook" not in machine.ok("ls", "/etc/systemd/system")
    machine.ok("id", "app")


START = """#!/usr/bin/python3 -I
# As somebody whom polkit lets start one unit, and nothing else.
import subprocess, sys
for verb, unit in (("StartUnit", "mark.service"), ("StopUnit", "mark.service"),
                   ("RestartUnit", "mark.service"), ("StartUnit", "other.service")):
    done = subprocess.run(
        ["busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
         "org.freedesktop.systemd1.Manager", verb, "ss", unit, "replace"],
        capture_output=True, timeout=30)
    print("GOT" if done.returncode == 0 else "not", verb, unit)
"""
RIGHT = """
[hooks.mark]
command = ["/usr/local/bin/start"]
user = "games"
sockets = ["/run/dbus/system_bus_socket"]
polkit = "org.freedesktop.systemd1.manage-units unit=mark.service verb=start"

[hooks.none]
command = ["/usr/local/bin/start"]
user = "backup"
sockets = ["/run/dbus/system_bus_socket"]
"""
RULES = "/etc/polkit-1/rules.d/50-capkeep.rules"


def test_a_hook_has_the_one_right_that_polkit_gives_it(machine: Machine) -> None:
    machine.write("/usr/local/bin/start", START, 0o755)
    for unit in ("mark", "other"):
        service = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
        machine.write(f"/etc/systemd/system/{unit}.service", service)
    machine.ok("systemctl", "daemon-reload")
    machine.ok("install", "-d", "/etc/capkeep/conf.d")
    machine.write("/etc/capkeep/conf.d/hooks.toml", RIGHT)
    job = '[jobs.system]\nrepositories = ["local"]\ninclude = ["/srv/data"]\nbefore = ["none", "mark"]\n'
    applied(machine, job=job)
    assert f"+++ {RULES}" not in machine.ok("capkeep", "plan")
    done = machine.run("capkeep", "run", "--json", seconds=120)
    said = [str(m["text"]) for m in messages(done) if m["event"] == "message"]
    assert [line for line in said if line.startswith("GOT")] == ["GOT StartUnit mark.service"]
    assert sum(line.startswith("not ") for line in said) == 7
    assert machine.ok("systemctl", "is-active", "mark.service") == "active\n"
    assert "polkit lets games do org.freedesktop.systemd1" in machine.ok(
        "capkeep", "audit", seconds=120
    )
    machine.write(RULES, "// nothing\n")
    assert RULES in machine.run("capkeep", "audit", seconds=120).out
    assert f"+++ {RULES}" in machine.ok("capkeep", "plan")
    machine.write("/etc/capkeep/conf.d/hooks.toml", RIGHT.replace("polkit =", "# polkit ="))
    assert f"removal of file {RULES}" in machine.ok("capkeep", "apply")
    assert machine.run("ls", RULES).code != 0
