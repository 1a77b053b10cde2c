"""A host as an administrator sets it up: a configuration, a secret, a repository, and `apply`."""

import json

from tests.lab.machine import Machine, Result

REPOSITORY = """\
[repositories.local]
engine = "restic"
location = "/srv/repo"
password = { file = "/etc/capkeep/secrets/local" }
"""
JOB = """
[jobs.system]
repositories = ["local"]
include = ["/etc", "/home", "/root", "/srv/data", "/var/lib"]
allow-empty = ["/home", "/root"]
"""


def configure(machine: Machine, more: str = "", *, job: str = JOB) -> None:
    """Write the configuration, its secret and something to keep."""
    machine.ok("install", "-d", "-m", "700", "/etc/capkeep/secrets")
    machine.write(
        "/etc/capkeep/secrets/local", "MguBjfPKSUJvoWbuzxQ8BYumyDVxSqGxvDgJi1TROkY=\n", 0o600
    )
    machine.write("/etc/capkeep/capkeep.toml", REPOSITORY + job + more)
    machine.write("/srv/data/word", "kept\n", 0o600)


def applied(machine: Machine, more: str = "", *, job: str = JOB) -> None:
    """A host on which backups can be taken."""
    configure(machine, more, job=job)
    machine.ok("capkeep", "apply")
    machine.ok("capkeep", "init")


def messages(done: Result) -> list[dict[str, object]]:
    """What `--json` printed."""
    return [json.loads(line) for line in done.out.splitlines()]


def last(machine: Machine, job: str = "system") -> dict[str, object]:
    """What `capkeep status` says of a job."""
    jobs = json.loads(machine.run("capkeep", "--json", "status").out)["jobs"]
    return next(j for j in jobs if j["job"] == job)
