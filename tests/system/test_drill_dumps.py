"""Dumps of real servers are loaded into servers of a drill's own, and compared with what was noted."""

import json
import os
import shutil
from pathlib import Path

from capkeep.rooms.trials.causes import EXTENSION
from tests.attack import hostile_dump
from tests.rooms.house import SUBORDINATE
from tests.system.conftest import Product
from tests.system.servers import POSTGRESQL, MariaDB, PostgreSQL, server
from tests.system.test_drill import drilled, exchange, part, scratch
from tests.system.test_dumps import ROWS, SHOP, manifest, staged, take
from tests.system.test_upkeep import restic, told

LINES = """
CREATE TABLE lines (id int PRIMARY KEY, goods int REFERENCES goods(id), note text);
INSERT INTO lines SELECT n, n, E'tab\\t newline\\n backslash \\\\. ' FROM generate_series(1, 700) AS n;
CREATE TABLE "odd "" schema.name" (n int) PARTITION BY RANGE (n);
CREATE TABLE part PARTITION OF "odd "" schema.name" FOR VALUES FROM (0) TO (10);
INSERT INTO part VALUES (1), (2);
CREATE MATERIALIZED VIEW dear AS SELECT * FROM goods WHERE id > 4000;
CREATE INDEX by_name ON goods (lower(name));
CREATE TABLE nothing ();
CREATE TABLE secret AS SELECT 'a-secret-of-the-shop' AS word;
"""


def left(product: Product) -> list[str]:
    """What of the servers of a drill is still there: files, processes of ids of the prover's."""
    found = [str(path) for path in scratch(product).parent.glob("restored*")]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            uid = int(status.read_text().partition("Uid:")[2].split()[0])
        except (OSError, IndexError):
            continue
        if SUBORDINATE <= uid < SUBORDINATE + (1 << 16):
            found.append(str(status))
    return found


def dumps_of(facts: dict[str, object]) -> dict[str, object]:
    dumps = facts["dumps"]
    assert isinstance(dumps, dict)
    return dumps


def rewritten(product: Product, name: str, file: str, old: bytes, new: bytes) -> None:
    """Let the record take a snapshot in which a file of a dump says something else."""
    path = staged(product, name) / "last" / file
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new, 1))
    restic(product, "backup", "--tag=capkeep:job", str(product.source), str(path.parent))
    path.write_bytes(text)
    exchange(product, json.loads(restic(product, "snapshots", "--json"))[-1]["id"])


def test_a_postgresql_dump_is_loaded_and_a_hostile_one_does_no_harm(product: Product) -> None:
    with server(PostgreSQL) as source:
        source.ask(ROWS)
        source.ask(SHOP, "shop")
        source.ask(LINES, "shop")
        source.ask("ALTER DATABASE shop SET default_transaction_read_only = on")
        source.ask("ALTER DATABASE shop SET lc_messages = 'C.UTF-8'")
        place = Path(source.run, "tablespace")  # of another disk, which no drill has
        place.mkdir(mode=0o700)
        shutil.chown(place, source.user, source.user)
        source.ask(f"CREATE TABLESPACE fast LOCATION '{place}'")
        source.ask("CREATE DATABASE placed TABLESPACE fast")
        source.ask("CREATE EXTENSION citext", "placed")
        drilled(product)
        take(product, "postgresql", f'socket = "{source.run}"\n')
        assert product("run").code == 0
        files = manifest(product, "postgresql")["files"]
        assert isinstance(files, list)
        (shop,) = [f for f in files if f["database"] == "shop"]
        assert {(s, t): n for s, t, n in shop["counts"]} == {
            ("public", "goods"): 5000, ("public", "lines"): 700, ("public", "part"): 2,
            ("public", "nothing"): 0, ("public", "secret"): 1,
        }  # fmt: skip
        done = product("drill", "--json")
        assert done.code == 0, (done.out, done.err, product.home.said())
        dumps = dumps_of(part(done))
        assert (dumps["databases"], dumps["tables"], dumps["rows"]) == (4, 5, 5703), dumps
        print(dumps)
        assert all(m["weaker"] == [] for m in told(done, "proof"))
        assert left(product) == []
        # A row that is not as its table demands is found; what is wrong is the dump, not the repository.
        rewritten(product, "postgresql", "shop.dump", b"700\t700\ttab", b"700\t-99\ttab")
        done = product("drill", "--json")
        assert done.code == 19, done
        assert hostile_dump.HELD in str(part(done)["differences"]), done.out
        assert "suspect" not in product("status").out
        source.ask("CREATE DATABASE evil")
        source.ask(hostile_dump.postgresql(), "evil")
        source.ask("CREATE DATABASE z_spy")
        spy = hostile_dump.spy(str(POSTGRESQL[0]), "shop", "TABLE secret")
        source.ask(spy, "z_spy")
        assert product("run").code == 0
        # What is not installed here says nothing of the dump.
        rewritten(product, "postgresql", "placed.dump", b"EXISTS citext", b"EXISTS citexx")
        done = product("drill", "--json")
        assert done.code == 19, done
        (lacking,) = dumps_of(part(done))["unproven"].items()  # type: ignore[attr-defined]
        assert lacking[0].endswith("placed.dump"), lacking
        assert lacking[1] == EXTENSION, lacking
        differences = part(done)["differences"]
        assert isinstance(differences, list)
        found = {os.path.basename(path): text for path, text in differences}
        ended = f"cannot be loaded: pg_restore ended with 1: {hostile_dump.HELD}"
        assert found == {"evil.dump": ended, "z_spy.dump": ended}, found
        told_of = (done.out, done.err, product("log").out, product("status").out)
        kept = Path(product.home.base, "state/records").rglob("*")
        records = (path for path in kept if path.is_file())
        for text in (*told_of, *(path.read_bytes().decode(errors="replace") for path in records)):
            assert not any(word in text for word in ("SCRAM", "a-secret-of", "LEAK1", "HOSTILE")), (
                text
            )
        assert left(product) == []


def test_a_mariadb_dump_is_loaded_and_what_is_wrong_in_it_is_found(product: Product) -> None:
    with server(MariaDB) as source:
        source.ask("""
            CREATE DATABASE shop; USE shop;
            CREATE TABLE goods (id int PRIMARY KEY, name text, picture blob) ENGINE=InnoDB;
            INSERT INTO goods SELECT seq, concat('it''s ),(\\n\\\\', seq), unhex(md5(seq)) FROM seq_1_to_2000;
            CREATE TABLE `li``nes` (n int, goods int, FOREIGN KEY (goods) REFERENCES goods(id));
            INSERT INTO `li``nes` VALUES (1, 1), (2, 2000), (3, NULL);
            CREATE TABLE nothing (n int) ENGINE=Aria;
            CREATE VIEW cheap AS SELECT * FROM goods WHERE id < 100;
            CREATE PROCEDURE twice(n int) INSERT INTO goods VALUES
(2, 'a', 'b');
            CREATE USER clerk@localhost IDENTIFIED BY 'not kept in clear';
            GRANT SELECT ON shop.* TO clerk@localhost;
            CREATE DATABASE early; CREATE TABLE early.t (n int, FOREIGN KEY (n) REFERENCES shop.goods(id));
            INSERT INTO early.t VALUES (7); CREATE VIEW early.dear AS SELECT * FROM shop.goods;
        """)
        drilled(product)
        take(product, "mariadb", f'socket = "{source.socket}"\n')
        assert product("run").code == 0
        files = manifest(product, "mariadb")["files"]
        assert isinstance(files, list)
        assert "clerk@localhost" in files[0]["names"]
        assert {t: n for _, t, n in files[2]["counts"]} == {
            "goods": 2000,
            "li`nes": 3,
            "nothing": 0,
        }
        done = product("drill", "--json")
        assert done.code == 0, (done.out, done.err, product.home.said())
        dumps = dumps_of(part(done))
        print(dumps)
        assert (dumps["databases"], dumps["tables"], dumps["rows"]) == (2, 4, 2004), dumps
        assert left(product) == []
    rewritten(product, "mariadb", "shop.sql", b"(2,2000)", b"(2,2001)")
    done = product("drill", "--json")
    assert done.code == 19, done
    assert "rows of li`nes name by a foreign key what is not in goods" in str(
        part(done)["differences"]
    ), done.out
    # What forbids the client its own commands is a line of the dump.
    attack = hostile_dump.mariadb().encode()
    rewritten(product, "mariadb", "shop.sql", b"/*M!999999\\- enable the sandbox mode */", attack)
    done = product("drill", "--json")
    assert done.code == 19, done
    assert hostile_dump.HELD in str(part(done)["differences"]), done.out
    assert "HOSTILE" not in done.out
    assert left(product) == []
    # A server that is not here proves nothing, and is not said to.
    rewritten(product, "mariadb", "manifest.json", b"mariadb 1", b"mariadb 9")
    done = product("drill", "--json")
    assert done.code == 0, done
    dumps = dumps_of(part(done))
    assert "databases" not in dumps, dumps
    why = "not proven: dump mariadb (the dump is of MariaDB 9"
    assert why in done.out, done.out
    assert "not proven: the dump at" in product("status").out
