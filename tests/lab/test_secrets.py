"""Secrets of every source and places of every kind, handed to units by systemd."""

from tests.lab.machine import Machine

# Names that mean something in unit files.
CONFIG = """\
[repositories.printed]
engine = "restic"
location = "/srv/re po: 100% $HOME"
password = { command = ["/usr/bin/printf", "%s", "pass 'word' $HOME; %n"] }

[repositories.stored]
engine = "restic"
location = "/srv/stored"
password = { credential = "plain" }

[repositories.sealed]
engine = "restic"
location = "rest:http://127.0.0.1:8000/sealed/"
password = { credential = "sealed" }
credentials.RESTIC_REST_USERNAME = { file = "/etc/capkeep/secrets/name:with%things" }
credentials.RESTIC_REST_PASSWORD = { command = ["/bin/echo", "remote"] }

[jobs.system]
repositories = ["printed", "stored", "sealed"]
include = ["/etc", "/srv/da ta: 100% $HOME"]
"""
SERVER = (
    "rclone", "serve", "restic", "--addr=127.0.0.1:8000", "--user=someone", "--pass=remote",
    "--config=/dev/null", "/srv/remote",
)  # fmt: skip


def test_secrets_come_from_files_commands_and_credentials(machine: Machine) -> None:
    machine.ok("install", "-d", "-m", "700", "/etc/capkeep/secrets", "/etc/credstore")
    machine.ok("install", "-d", "-m", "700", "/etc/credstore.encrypted")
    machine.write("/etc/capkeep/secrets/name:with%things", "someone\n", 0o600)
    machine.write("/etc/credstore/plain", "a plain one\n", 0o600)
    machine.ok("sh", "-c", "echo a sealed one | systemd-creds encrypt --with-key=host --name=sealed - "
               "/etc/credstore.encrypted/sealed")  # fmt: skip
    machine.write("/srv/da ta: 100% $HOME/word", "kept")
    machine.write("/etc/capkeep/capkeep.toml", CONFIG)
    rclone = machine.ok("sh", "-c", "ls /opt/capkeep/bin/rclone").strip()
    machine.ok("systemd-run", "--unit=remote", rclone, *SERVER[1:])
    machine.ok("capkeep", "apply", seconds=120)
    machine.ok("capkeep", "init", seconds=120)
    done = machine.run("capkeep", "run", seconds=120)
    assert done.code == 0, done
    assert done.out.count("complete,") == 3
    for name in ("printed", "stored", "sealed"):
        listed = machine.ok("capkeep", "ls", "--repository", name, "latest", seconds=60)
        assert "/srv/da ta: 100% $HOME/word" in listed
    machine.ok("capkeep", "audit", seconds=120)


def test_a_secret_that_cannot_be_had_is_said(machine: Machine) -> None:
    config = CONFIG.partition("[repositories.stored]")[0].replace("/usr/bin/printf", "/bin/false")
    config += '[jobs.system]\nrepositories = ["printed"]\ninclude = ["/etc"]\n'
    machine.ok("install", "-d", "-m", "700", "/etc/capkeep/secrets")
    machine.write("/etc/capkeep/capkeep.toml", config)
    machine.ok("capkeep", "apply")
    done = machine.run("capkeep", "init")
    assert done.code not in (0, 3)
    assert "secret password" in done.out + done.err
