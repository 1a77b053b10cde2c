"""The how-to pages that translate published setups: each configuration, run as it is printed."""

import json
import re
from pathlib import Path
from typing import Final

from tests.lab.machine import Machine
from tests.lab.scenes import applied

PAGES: Final = Path(__file__).parents[2] / "docs" / "how-to"
BLOCK: Final = re.compile(r"```(console|toml|ini|sh|python)\n(.*?)```", re.DOTALL)
MOST_LINES: Final = 40
# Takes mail and pings as servers on this machine do, and writes down what came.
OUTSIDE: Final = """
import http.server, socketserver, threading
class Ping(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with open("/srv/pinged", "a") as file:
            file.write(self.path.partition("?")[0] + "\\n")
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *words): pass
class Mail(socketserver.StreamRequestHandler):
    def handle(self):
        self.say("220 lab")
        while line := self.rfile.readline():
            word = line.split()[0].upper() if line.split() else b""
            if word == b"DATA":
                self.say("354 go on")
                text = b"".join(iter(self.rfile.readline, b".\\r\\n"))
                with open("/srv/mailed", "ab") as file:
                    file.write(text)
            self.say("221 bye" if word == b"QUIT" else "250 ok")
    def say(self, text):
        self.wfile.write(text.encode() + b"\\r\\n")
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
threading.Thread(target=Server(("127.0.0.1", 25), Mail).serve_forever).start()
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Ping).serve_forever()
"""


def blocks(page: str, kind: str) -> list[str]:
    text = (PAGES / page).read_text()
    return [found for name, found in BLOCK.findall(text) if name == kind]


def typed(machine: Machine, page: str) -> None:
    """All commands of the page, one after the other."""
    type_(machine, "".join(blocks(page, "console")))


def type_(machine: Machine, commands: str) -> None:
    for line in commands.splitlines():
        command = line.removeprefix("# ")
        done = machine.run("sh", "-c", command, seconds=120)
        assert done.code == 0, (command, done)


def short(*texts: str) -> bool:
    return sum(bool(line.strip()) for text in texts for line in text.splitlines()) < MOST_LINES


def prepared(machine: Machine) -> None:
    """Secrets, and files to keep."""
    machine.ok("install", "-d", "-m", "700", "/etc/capkeep/secrets")
    for name in ("offsite", "disk"):
        machine.write(f"/etc/capkeep/secrets/{name}", f"{name}'s password\n", 0o600)
    machine.write("/etc/capkeep/secrets/healthchecks-url", "http://localhost:8000/ping/x\n", 0o600)
    machine.write("/home/someone/letter", "dear all\n")
    machine.write("/root/note", "private\n", 0o600)
    machine.write("/srv/data/word", "kept\n")


def test_restic_with_mail_and_healthchecks(machine: Machine) -> None:
    page = "restic-with-mail-and-healthchecks.md"
    (text,) = blocks(page, "toml")
    assert short(text)
    prepared(machine)
    machine.write("/srv/outside.py", OUTSIDE)
    machine.ok("systemd-run", "--unit=outside", "python3", "/srv/outside.py")
    # The machine is on no network: its bucket is a directory, which has no credentials.
    text = text.replace("s3:https://s3.example.org/backups", "/var/backup")
    text = re.sub(r"credentials\..*\n", "", text)
    machine.write("/etc/capkeep/capkeep.toml", text)
    typed(machine, page)
    machine.wait(lambda: "/ping/x/0" in machine.run("cat", "/srv/pinged").out.split(), 60)
    machine.wait(lambda: "complete" in machine.run("cat", "/srv/mailed").out, 60)
    assert "/ping/x/start" in machine.ok("cat", "/srv/pinged").split()
    timers = machine.ok("systemctl", "list-timers", "--all", "--no-legend", "capkeep-*")
    assert "capkeep-run-system.timer" in timers
    assert "capkeep-retention-system.timer" in timers
    machine.ok("mv", "/srv/data", "/somewhere-else")
    machine.ok("rm", "-r", "/home/someone")  # an include that is empty now: something was missed
    assert machine.run("capkeep", "run").code == 3
    machine.wait(lambda: "/ping/x/3" in machine.run("cat", "/srv/pinged").out.split(), 60)
    machine.wait(lambda: "partial" in machine.run("cat", "/srv/mailed").out, 60)


def test_dumps_of_packages(machine: Machine) -> None:
    page = "dumps-of-packages.md"
    config, wiki, state = blocks(page, "toml")
    assert short(config, wiki, state)
    prepared(machine)
    machine.ok("install", "-d", "-o", "www-data", "/srv/wiki")
    fill = "import sqlite3; d = sqlite3.connect('/srv/wiki/wiki.db'); d.execute('CREATE TABLE page (text)'); d.commit()"
    machine.ok("python3", "-c", fill)
    machine.ok("chown", "www-data:", "/srv/wiki/wiki.db")
    machine.write("/etc/capkeep/capkeep.toml", config)
    machine.write("/etc/capkeep/conf.d/wiki.toml", wiki)
    machine.write("/etc/capkeep/conf.d/state.toml", state)
    typed(machine, page)
    assert json.loads(machine.ok("capkeep", "--json", "history"))[0]["outcome"] == "complete"
    assert "/var/lib/capkeep/dumps/wiki/last/manifest.json" in machine.ok("capkeep", "ls", "latest")
    streams = [
        s["paths"] for s in json.loads(machine.ok("capkeep", "--json", "snapshots"))[0]["snapshots"]
    ]
    assert [path for path in streams if len(path) == 1], "the other dump's own snapshot"
    machine.ok("rm", "/etc/capkeep/conf.d/wiki.toml")
    machine.ok("capkeep", "apply")
    assert "capkeep-dumper-wiki" not in machine.ok("systemctl", "list-units", "--all", "capkeep-*")


def test_hooks(machine: Machine) -> None:
    """Its files and commands; what makes snapshots copies here, as there is no btrfs."""
    page = "hooks.md"
    applied(machine, job='[jobs.etc]\nrepositories = ["local"]\ninclude = ["/etc"]\n')
    for kind in ("ini", "sh", "python"):
        for text in blocks(page, kind):
            path = re.findall(r"^# (/[^\s:]+)", text, re.MULTILINE)[0]
            there = text.replace("btrfs subvolume snapshot -r /srv ", "cp -a /srv/data ")
            machine.write(path, there.replace("btrfs subvolume delete", "rm -r"))
    machine.ok("install", "-d", "/etc/capkeep/conf.d")
    for text, commands in zip(blocks(page, "toml"), blocks(page, "console"), strict=True):
        machine.write(f"/etc/capkeep/conf.d/{len(text)}.toml", text)
        type_(machine, commands)
    machine.ok("capkeep", "restore", "latest", "/srv/.snapshot", "--to", "/root/back")
    assert machine.read("/root/back/srv/.snapshot/word") == "kept\n"
    assert machine.run("test", "-e", "/srv/.snapshot").code == 1
    assert "coreutils" in machine.read("/var/lib/package-list/list")
