"""Real database servers of Debian's packages, each in a directory of its own, on a unix socket alone.

They run as the users that Debian made for them, as on every host that has them.
"""

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.rooms.house import wait_for

SECONDS = 60
POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
LONG_SUFFIX = f"ou={'long' * 20},dc=example,dc=net"
CONFIG = """\
dn: cn=config
objectClass: olcGlobal
cn: config

dn: cn=module{{0}},cn=config
objectClass: olcModuleList
cn: module{{0}}
olcModulePath: /usr/lib/ldap
olcModuleLoad: back_mdb

dn: cn=schema,cn=config
objectClass: olcSchemaConfig
cn: schema

include: file:///etc/ldap/schema/core.ldif
include: file:///etc/ldap/schema/cosine.ldif
include: file:///etc/ldap/schema/inetorgperson.ldif

dn: olcDatabase={{1}}mdb,cn=config
objectClass: olcMdbConfig
olcDatabase: {{1}}mdb
olcSuffix: dc=example,dc=org
olcRootDN: cn=admin,dc=example,dc=org
olcRootPW: admin
olcDbDirectory: {data}

dn: olcDatabase={{2}}mdb,cn=config
objectClass: olcMdbConfig
olcDatabase: {{2}}mdb
olcSuffix: {long}
olcDbDirectory: {data}/long
"""
TOP = """\
dn: dc=example,dc=org
objectClass: domain
dc: example
"""


def run_as(user: str, *argv: object, stdin: bytes = b"") -> str:
    """What a program answers that runs as somebody. Raises CalledProcessError."""
    account = pwd.getpwnam(user)
    done = subprocess.run(
        [str(word) for word in argv], user=account.pw_uid, group=account.pw_gid, extra_groups=[],
        input=stdin, capture_output=True, env=ENV, cwd="/", timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout.decode()


class Server:
    """A server's directory and socket; `process` while it runs."""

    def __init__(self, base: str, user: str) -> None:
        self.user = user
        self.base = base
        self.data = f"{base}/data"
        self.run = f"{base}/run"
        account = pwd.getpwnam(user)
        os.chmod(base, 0o755)
        for path, mode in ((self.data, 0o700), (self.run, 0o755)):
            os.mkdir(path, mode)
            os.chown(path, account.pw_uid, account.pw_gid)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        return f"{self.run}/socket"

    def start(self, *argv: str) -> None:
        account = pwd.getpwnam(self.user)
        log = os.open(f"{self.base}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self.process = subprocess.Popen(
                argv, user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd="/",
                env=ENV, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(log)
        wait_for(self._answers, SECONDS)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, Path(self.base, "log").read_text()
        try:
            self.ask("")
        except (AssertionError, FileNotFoundError):
            return False
        return True

    def ask(self, question: str, *words: str) -> str:
        """What the server answers to a question in its own language."""
        raise NotImplementedError

    def begin(self) -> None:
        """Start it with what is in its directory."""
        raise NotImplementedError

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)  # postgres: fast shutdown
                self.process.terminate()
            try:
                self.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(SECONDS)
            self.process = None


class PostgreSQL(Server):
    def __init__(self, base: str) -> None:
        super().__init__(base, "postgres")
        (self.programs,) = POSTGRESQL
        run_as(self.user, self.programs / "initdb", "--auth=peer", "--no-sync", "-D", self.data)

    def begin(self) -> None:
        self.start(
            str(self.programs / "postgres"), "-D", self.data, "-k", self.run, "-c",
            "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB",
        )  # fmt: skip

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # its "fast" shutdown, of all its processes
            self.process.wait(SECONDS)
            self.process = None

    def ask(self, question: str, *words: str) -> str:
        database = words[0] if words else "postgres"
        return run_as(
            self.user, self.programs / "psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1",
            "-h", self.run, "-d", database, stdin=question.encode(),
        )  # fmt: skip


class MariaDB(Server):
    def __init__(self, base: str) -> None:
        super().__init__(base, "mysql")
        run_as(
            self.user, "/usr/bin/mariadb-install-db", "--no-defaults", f"--datadir={self.data}",
            "--skip-test-db", "--auth-root-authentication-method=socket", "--user=mysql",
        )  # fmt: skip

    def begin(self) -> None:
        self.start(
            "/usr/sbin/mariadbd", "--no-defaults", f"--datadir={self.data}", "--skip-networking",
            f"--socket={self.socket}", f"--pid-file={self.run}/pid",
            "--innodb-flush-log-at-trx-commit=0", "--plugin-load-add=auth_socket.so",
        )  # fmt: skip

    def ask(self, question: str, *words: str) -> str:
        return run_as(
            self.user, "/usr/bin/mariadb", "--no-defaults", f"--socket={self.socket}", "--batch",
            "--skip-column-names", "--raw", *words, stdin=(question or "SELECT 1").encode(),
        )  # fmt: skip


class Redis(Server):
    def __init__(self, base: str, rdb: Path | None = None) -> None:
        """With an RDB file it begins with what is in there."""
        super().__init__(base, "redis")
        if rdb:
            Path(self.data, "dump.rdb").write_bytes(rdb.read_bytes())
            os.chmod(f"{self.data}/dump.rdb", 0o644)

    def begin(self) -> None:
        self.start(
            "/usr/bin/redis-server", "--port", "0", "--unixsocket", self.socket, "--dir",
            self.data, "--save", "", "--daemonize", "no",
        )  # fmt: skip

    def ask(self, question: str, *words: str) -> str:
        return run_as(
            self.user, "/usr/bin/redis-cli", "-e", "-s", self.socket, *words,
            *(() if words or question else ("PING",)), stdin=question.encode(),
        )  # fmt: skip


ServerT = TypeVar("ServerT", bound=Server)


class LDAP(Server):
    """slapd, with people below dc=example,dc=org."""

    def __init__(self, base: str, dump: Path | None = None) -> None:
        """With a dump it begins with what is in there."""
        super().__init__(base, "openldap")
        self.etc = f"{base}/etc"
        os.makedirs(f"{self.etc}/slapd.d")
        os.mkdir(f"{self.data}/long")
        for path in (self.etc, f"{self.etc}/slapd.d", f"{self.data}/long"):
            shutil.chown(path, self.user, self.user)
        config = CONFIG.format(data=self.data, long=LONG_SUFFIX)
        content = TOP
        if dump:
            old = (dump / "config.ldif").read_text()
            config = re.sub(r"(olcDbDirectory: ).*?(/long)?\n", rf"\g<1>{self.data}\g<2>\n", old)
            (file,) = dump.glob("dc*.ldif")
            content = file.read_text()
        self._add("0", config)
        self._add("1", content)

    def _add(self, number: str, ldif: str) -> None:
        run_as(
            self.user, "/usr/sbin/slapadd", "-F", f"{self.etc}/slapd.d", "-n", number,
            stdin=ldif.encode(),
        )  # fmt: skip

    @property
    def url(self) -> str:
        return "ldapi://" + self.socket.replace("/", "%2F")

    def begin(self) -> None:
        self.start(
            "/usr/sbin/slapd", "-d", "0", "-F", f"{self.etc}/slapd.d", "-h", self.url,
        )  # fmt: skip

    def ask(self, question: str, *words: str) -> str:
        """Adds what LDIF says; else shows an entry."""
        if question:
            return run_as(self.user, "/usr/bin/ldapadd", "-H", self.url, "-x", "-D",
                          "cn=admin,dc=example,dc=org", "-w", "admin", stdin=question.encode())  # fmt: skip
        where = words[0] if words else "dc=example,dc=org"
        return run_as(self.user, "/usr/bin/ldapsearch", "-H", self.url, "-x", "-LLL", "-b", where)


@contextlib.contextmanager
def server(kind: Callable[[str], ServerT]) -> Iterator[ServerT]:
    """One that runs, and is gone with all that it held."""
    base = tempfile.mkdtemp(prefix="cks-", dir="/srv")
    made: ServerT | None = None
    try:
        made = kind(base)
        made.begin()
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(base)
