"""Dumps of real servers, by the real rooms: backed up, restored into a fresh server, and compared."""

import contextlib
import json
import os
import pwd
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rooms.house import house
from tests.system.conftest import Product
from tests.system.servers import LDAP, LONG_SUFFIX, MariaDB, PostgreSQL, Redis, run_as, server

ROWS = """
CREATE ROLE shopkeeper LOGIN PASSWORD 'not kept in clear';
CREATE DATABASE shop OWNER shopkeeper;
CREATE DATABASE "odd 'name\\/ö";
"""
SHOP = """
CREATE TABLE goods (id serial PRIMARY KEY, name text, picture bytea);
INSERT INTO goods (name, picture)
  SELECT 'thing ' || n, decode(md5(n::text), 'hex') FROM generate_series(1, 5000) AS n;
CREATE VIEW cheap AS SELECT * FROM goods WHERE id < 100;
"""
DIGEST = "SELECT md5(string_agg(id || name || encode(picture, 'hex'), ',' ORDER BY id)) FROM goods"
PEOPLE = """\
dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: uid=ada,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: ada
sn: Lovelace
cn: Ada Lovelace
"""


@pytest.fixture
def kept() -> Iterator[Product]:
    """An installation with a repository, whose job is to take dumps."""
    with house() as home, home.doors():
        product = Product(home)
        made = product("init")
        assert made.code == 0, made
        yield product


def take(product: Product, name: str, table: str) -> None:
    """Let the job take a dump."""
    path = Path(product.home.base, "etc/conf.d")
    path.mkdir(exist_ok=True)
    (path / f"{name}.toml").write_text(f"[dumps.{name}]\n{table}")
    product.configure("[jobs.job]\n", f'[jobs.job]\ndumps = ["{name}"]\n')


def staged(product: Product, name: str) -> Path:
    return Path(product.home.places.state, "dumps", name)


def manifest(product: Product, name: str) -> dict[str, object]:
    found = json.loads((staged(product, name) / "last/manifest.json").read_text())
    assert isinstance(found, dict)
    return found


def restored(product: Product, name: str) -> Path:
    """What the newest snapshot holds of a dump, as root restores it."""
    target = Path(product.home.base, "back")
    done = product.root("restore", "latest", str(staged(product, name)), "--to", str(target))
    assert done.code == 0, done
    return Path(f"{target}{staged(product, name)}/last")


def readable(path: Path, folder: str) -> Path:
    """A copy of a restored file that a server's user may read."""
    target = Path(folder) / path.name
    target.write_bytes(path.read_bytes())
    os.chmod(target, 0o644)
    return target


@contextlib.contextmanager
def home_of(user: str) -> Iterator[Path]:
    """A directory of a user's own, among the homes, where rooms usually see nothing."""
    path = Path(tempfile.mkdtemp(prefix="cks-", dir="/home"))
    try:
        give(path, user)
        yield path
    finally:
        shutil.rmtree(path)


def give(folder: Path, user: str) -> None:
    account = pwd.getpwnam(user)
    for path in (folder, *folder.iterdir()):
        os.chown(path, account.pw_uid, account.pw_gid)


def test_postgresql_comes_back_in_a_fresh_server(kept: Product) -> None:
    with server(PostgreSQL) as source:
        source.ask(ROWS)
        source.ask(SHOP, "shop")
        before = source.ask(DIGEST, "shop")
        take(kept, "postgresql", f'socket = "{source.run}"\n')
        done = kept("run")
        assert done.code == 0, done.out
        assert "dump postgresql: complete" in done.out
    said = manifest(kept, "postgresql")
    assert str(said["server"]).startswith("PostgreSQL ")
    files = said["files"]
    assert isinstance(files, list)
    assert {f["database"]: f["tables"] for f in files} == {
        "": 0, "postgres": 0, "shop": 1, "odd 'name\\/ö": 0,
    }  # fmt: skip
    root = staged(kept, "postgresql")
    assert (root.stat().st_mode & 0o777, (root / "last").stat().st_mode & 0o777) == (0o700, 0o700)
    assert {p.stat().st_mode & 0o777 for p in (root / "last").iterdir()} == {0o600}
    found = restored(kept, "postgresql")
    with server(PostgreSQL) as fresh:
        globals_sql = (found / "globals.sql").read_text()
        fresh.ask(globals_sql.replace("CREATE ROLE postgres;", ""))
        dump = readable(found / "shop.dump", fresh.base)
        run_as("postgres", fresh.programs / "pg_restore", "--create", "--exit-on-error",
               "-h", fresh.run, "-d", "postgres", dump)  # fmt: skip
        assert fresh.ask(DIGEST, "shop") == before
        assert fresh.ask("SELECT count(*) FROM cheap", "shop") == "99\n"
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'shop'"
        assert fresh.ask(owner) == "shopkeeper\n"


def test_mariadb_comes_back_in_a_fresh_server(kept: Product) -> None:
    digest = "SELECT count(*), md5(group_concat(name ORDER BY id)) FROM shop.goods WHERE id < 50"
    with server(MariaDB) as source:
        source.ask("""
            CREATE DATABASE shop; USE shop;
            CREATE TABLE goods (id int PRIMARY KEY, name text, picture blob) ENGINE=InnoDB;
            INSERT INTO goods SELECT seq, md5(seq), unhex(md5(seq)) FROM seq_1_to_2000;
            CREATE VIEW cheap AS SELECT * FROM goods WHERE id < 100;
            CREATE PROCEDURE twice(n int) SELECT 2 * n;
            CREATE EVENT later ON SCHEDULE AT '2038-01-01 00:00:00' DO DELETE FROM goods;
            CREATE TRIGGER upper_names BEFORE INSERT ON goods FOR EACH ROW SET NEW.name = upper(NEW.name);
            CREATE USER clerk@localhost IDENTIFIED BY 'not kept in clear';
            GRANT SELECT ON shop.* TO clerk@localhost;
        """)
        before = source.ask(digest)
        take(kept, "mariadb", f'socket = "{source.socket}"\n')
        done = kept("run")
        assert done.code == 0, done.out
    found = restored(kept, "mariadb")
    assert {p.name for p in found.iterdir()} == {"grants.sql", "shop.sql", "manifest.json"}
    with server(MariaDB) as fresh:
        for name in ("shop.sql", "grants.sql"):
            fresh.ask((found / name).read_text())
        assert fresh.ask(digest) == before
        assert fresh.ask("CALL shop.twice(21)") == "42\n"
        assert fresh.ask("SELECT count(*) FROM shop.cheap") == "99\n"
        assert fresh.ask("SELECT event_name FROM information_schema.events") == "later\n"
        assert fresh.ask("SELECT trigger_name FROM information_schema.triggers WHERE"
                         " trigger_schema = 'shop'") == "upper_names\n"  # fmt: skip
        assert "GRANT SELECT ON `shop`.*" in fresh.ask("SHOW GRANTS FOR clerk@localhost")


def test_the_programs_of_mysql_do_the_same(kept: Product) -> None:
    with server(MariaDB) as source:
        source.ask("CREATE DATABASE shop; CREATE TABLE shop.t (n int); INSERT INTO shop.t VALUES (7);"
                   "CREATE DATABASE other; CREATE USER clerk@localhost;"
                   "CREATE DATABASE `li\u2028ne`; CREATE USER 'it''s \\\\ \u0085'@localhost;"
                   "CREATE USER 'x\\n; DROP DATABASE shop; --'@localhost")  # fmt: skip
        table = f'kind = "mysql"\nsocket = "{source.socket}"\nexclude-databases = ["other"]\n'
        take(kept, "web", table)
        done = kept("run")
        assert done.code == 0, done.out
    found = restored(kept, "web")
    assert not (found / "other.sql").exists()
    grants = (found / "grants.sql").read_text()
    for name in ("clerk", "it's \\ \u0085", "x\n; DROP DATABASE shop; --"):
        assert f"CREATE USER `{name}`@`localhost`" in grants
    assert (found / "li%E2%80%A8ne.sql").exists()
    with server(MariaDB) as fresh:
        fresh.ask((found / "shop.sql").read_text())
        assert fresh.ask("SELECT n FROM shop.t") == "7\n"


def test_redis_comes_back_in_a_fresh_server(kept: Product) -> None:
    with server(Redis) as source:
        source.ask("\n".join(f"SET key{n} value{n}" for n in range(3000)))
        source.ask("RPUSH list a b c")
        take(kept, "redis", f'socket = "{source.socket}"\n')
        done = kept("run")
        assert done.code == 0, done.out
    files = manifest(kept, "redis")["files"]
    assert isinstance(files, list)
    assert files[0]["rows"] == 3001
    found = restored(kept, "redis")
    with server(lambda base: Redis(base, found / "dump.rdb")) as fresh:
        assert fresh.ask("", "DBSIZE") == "3001\n"
        assert fresh.ask("", "GET", "key2999") == "value2999\n"
        assert fresh.ask("", "LRANGE", "list", "0", "-1") == "a\nb\nc\n"


def test_ldap_comes_back_in_a_fresh_server(kept: Product) -> None:
    with server(LDAP) as source:
        source.ask(PEOPLE)
        take(kept, "ldap", f'paths = ["{source.etc}", "{source.data}"]\n')
        done = kept("run")
        assert done.code == 0, done.out
        # Written while it is looked at, by the same server: nobody was locked out for ever.
        source.ask(PEOPLE.replace("uid=ada", "uid=grace").replace("dn: ou=", "#"))
    found = restored(kept, "ldap")
    assert {p.name for p in found.iterdir()} == {
        "config.ldif", "dc%3Dexample%2Cdc%3Dorg.ldif", "manifest.json",
        f"{LONG_SUFFIX}.ldif".replace("=", "%3D").replace(",", "%2C"),
    }  # fmt: skip
    with server(lambda base: LDAP(base, found)) as fresh:
        assert "cn: Ada Lovelace" in fresh.ask("", "uid=ada,ou=people,dc=example,dc=org")


@pytest.mark.parametrize("wal", [False, True], ids=["rollback", "wal"])
@pytest.mark.parametrize("opened", [False, True], ids=["closed", "open"])
def test_sqlite_is_copied_while_it_is_written(kept: Product, wal: bool, opened: bool) -> None:
    with home_of("news") as home:
        path = home / "app?#%.db"
        database = sqlite3.connect(path)
        if wal:
            database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (n int)")
        database.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(2000)])
        database.commit()
        give(home, "news")
        if opened:
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO t VALUES (-1)")  # not committed: no part of the copy
        else:
            database.close()
        take(kept, "app", f'kind = "sqlite"\npaths = ["{path}"]\n')
        done = kept("run")
        assert done.code == 0, done.out
        if opened:
            database.rollback()
            database.close()
    files = manifest(kept, "app")["files"]
    assert isinstance(files, list)
    assert (files[0]["tables"], files[0]["rows"]) == (1, 2000)
    found = restored(kept, "app") / files[0]["file"]
    with contextlib.closing(sqlite3.connect(found)) as copy:
        assert copy.execute("SELECT count(*), sum(n) FROM t").fetchone() == (2000, 1999000)


def test_a_command_s_output_is_a_dump(kept: Product) -> None:
    take(kept, "own", 'kind = "command"\nuser = "news"\ncommand = ["/usr/bin/id", "-un"]\n')
    done = kept("run")
    assert done.code == 0, done
    assert (restored(kept, "own") / "dump").read_text() == "news\n"
