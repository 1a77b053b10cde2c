"""The notifier as a systemd unit: who is told, what monitoring finds, and what the room could do."""

import json

from tests.lab.machine import Machine
from tests.lab.scenes import applied
from tests.lab.test_life import exposure

# Writes down every request; the first of each kind that it is told to refuse it refuses.
SERVER = """
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        with open("/srv/asked", "a") as file:
            file.write(json.dumps({"path": self.path, "body": body}) + "\\n")
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
CHANNELS = """
[notify.healthchecks]
url = { file = "/etc/capkeep/secrets/ping" }

[notify.webhook]
url = { credential = "hook" }
when = "always"
retry-for = "20s"

[metrics]
directory = "/var/lib/capkeep-metrics"
"""
# Runs in place of the notifier's own program, behind the same directives.
LOOK = """
import json, os, sys
found = {}
for path in sys.argv[1:]:
    try:
        with open(path, "rb") as file:
            found[path] = "read" if file.read(1) else "empty"
    except OSError as error:
        found[path] = error.strerror
written = []
for folder in ("/", "/tmp", "/var/tmp", "/run", "/etc", "/var/lib", "/dev/shm", "/home", "/root"):
    try:
        open(folder + "/x", "w").close()
        written.append(folder)
    except OSError:
        pass
status = dict(l.split(":\\t", 1) for l in open("/proc/self/status").read().splitlines() if ":\\t" in l)
print(json.dumps({"found": found, "written": written, "uid": os.getuid(),
                  "caps": status["CapBnd"], "credentials": sorted(os.listdir(os.environ["CREDENTIALS_DIRECTORY"]))}))
"""


def asked(machine: Machine) -> list[dict[str, str]]:
    said = machine.run("cat", "/srv/asked").out
    return [json.loads(line) for line in said.splitlines()]


def receiver(machine: Machine) -> None:
    """A server outside, as far as capkeep knows, that writes down what it is asked."""
    machine.write("/srv/server.py", SERVER)
    machine.ok("systemd-run", "--unit=outside", "python3", "/srv/server.py")


def prepared(machine: Machine) -> None:
    receiver(machine)
    machine.write("/etc/capkeep/secrets/ping", "http://localhost:8000/ping/0123456789\n", 0o600)
    machine.write("/etc/credstore/hook", "http://localhost:8000/hook/9876543210\n", 0o600)
    applied(machine, CHANNELS)


def test_everybody_is_told_by_a_unit_of_its_own(machine: Machine) -> None:
    prepared(machine)
    tested = machine.run("capkeep", "notify", "test")
    assert tested.code == 0, tested
    done = machine.run("capkeep", "run")
    assert done.code == 0, done
    machine.wait(lambda: len(asked(machine)) == 5, 30)
    paths = {a["path"].partition("?")[0] for a in asked(machine)}
    assert paths == {"/ping/0123456789/log", "/ping/0123456789/start", "/ping/0123456789/0",
                     "/hook/9876543210"}  # fmt: skip
    told = next(json.loads(a["body"]) for a in asked(machine)[2:] if "/hook/" in a["path"])
    assert told["run"]["outcome"] == "complete"
    machine.wait(
        lambda: json.loads(machine.run("capkeep", "status", "--json").out)["undelivered"] == []
    )
    stamp = machine.read("/var/lib/capkeep/last-complete/system").split()
    assert stamp[1] == told["run"]["id"]
    machine.wait(
        lambda: machine.run("test", "-e", "/var/lib/capkeep-metrics/capkeep.prom").code == 0
    )
    metrics = machine.read("/var/lib/capkeep-metrics/capkeep.prom")
    assert (
        'capkeep_run_outcome{backup_job="system",action="backup",outcome="complete"} 1' in metrics
    )
    plugin = machine.run("capkeep", "status", "--nagios")
    assert plugin.code == 0, plugin
    assert plugin.out.startswith("CAPKEEP OK - 1 job is fresh")
    machine.ok("capkeep", "audit")
    for word in ("0123456789", "9876543210"):
        assert word not in machine.journal()
    assert machine.ok("systemctl", "--failed", "--quiet") == ""


def test_the_notifier_is_as_exposed_as_promised_and_sees_no_files(machine: Machine) -> None:
    prepared(machine)
    name = "capkeep-notifier@.service"
    assert exposure(machine, name) <= 1.0
    machine.write("/opt/capkeep/look.py", LOOK)
    hidden = (
        "/etc/shadow", "/srv/data/word", "/etc/capkeep/capkeep.toml", "/etc/capkeep/secrets/local",
        "/var/lib/capkeep/plan.json", "/var/lib/capkeep/records/records.db", "/srv/repo/config",
        "/etc/credstore/hook",
    )  # fmt: skip
    argv = " ".join(("/usr/bin/python3", "-I", "/run/look.py", *hidden))
    machine.write(
        f"/etc/systemd/system/{name}.d/hostile.conf",
        f"[Service]\nExecStart=\nExecStart={argv}\nBindReadOnlyPaths=/opt/capkeep/look.py:/run/look.py\n",
    )
    machine.ok("systemctl", "daemon-reload")
    said = machine.ok(
        "setpriv", "--reuid=capkeep", "--clear-groups", "--regid=capkeep", "python3", "-c",
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/capkeep/notifier.sock');"
        " print(s.makefile().read())",
    )  # fmt: skip
    found = json.loads(said)
    assert "read" not in found["found"].values(), found
    assert found["written"] == []
    assert int(found["caps"], 16) == 0
    assert found["credentials"] == ["brief", "healthchecks.url", "hook", "host"]
    refused = machine.run(
        "setpriv", "--reuid=capkeep-reader", "--clear-groups", "--regid=capkeep-reader", "python3",
        "-c", "import socket; socket.socket(socket.AF_UNIX).connect('/run/capkeep/notifier.sock')",
    )  # fmt: skip
    assert "PermissionError" in refused.err
