"""What is counted in dumps as they go past, and what drills compare with that."""

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from capkeep.config.model import Config
from capkeep.host.hardening import restoring
from capkeep.plan.model import Grant, Mode, Room, RoomKind
from capkeep.plan.prover import servers
from capkeep.rooms.base import EngineRoom
from capkeep.rooms.dumps.counting import CopyCounter, inserted, roles, users
from capkeep.rooms.ground import Ground, Said, Unproven
from capkeep.rooms.trials.causes import EXTENSION, LOCALE, PRELOADED, cause
from capkeep.rooms.trials.noted import Item, compared, items, numbers, opened
from capkeep.rooms.trials.postgresql import _programs, loadable

COPIES = b"""\
--
-- Data for Name: goods; Type: TABLE DATA; Schema: public; Owner: ada
COPY public.goods (id, name) FROM stdin;
1\tCOPY public.other (id) FROM stdin;
2\tb\\\\.
3\t\\N
\\.


COPY "odd.s"."we""ird\n name" (x) FROM stdin;
\\.
COPY public.nothing  FROM stdin;



\\.
SELECT pg_catalog.setval('public.goods_id_seq', 3, true);
"""
INSERTS = rb"""
CREATE TABLE `a``b` (
INSERT INTO `a``b` VALUES
(1,'it''s ),(\n\\'),
(2,'y');
/*!40000 ALTER TABLE `a``b` ENABLE KEYS */;
CREATE TABLE `nothing` (
CREATE TABLE `many` (
INSERT INTO `many` (`a`,`b)`) VALUES (1,'a),(\'('),(2,NULL),(3,_binary '''('),(4,'');
DELIMITER ;;
CREATE PROCEDURE `p`()
INSERT INTO `a``b` VALUES
(3,'not a row of the dump');
;;
DELIMITER ;
"""
GRANTS = rb"""
CREATE USER IF NOT EXISTS `o``'dd`@`%` IDENTIFIED BY PASSWORD '*B6';
CREATE USER IF NOT EXISTS ``@`localhost`;
CREATE USER 'it\'s'@'h';
GRANT USAGE ON *.* TO `clerk`@`localhost`;
"""


def test_rows_are_counted_however_they_are_cut() -> None:
    chance = random.Random(1)
    for _ in range(300):
        counter, place = CopyCounter(), 0
        while place < len(COPIES):
            size = chance.choice((1, 2, 3, 7, 50, 5000))
            counter.feed(COPIES[place : place + size])
            place += size
        assert counter.counts == [
            ("public", "goods", 3), ("odd.s", 'we"ird\n name', 0), ("public", "nothing", 3),
        ]  # fmt: skip
    with pytest.raises(ValueError, match="without end"):
        CopyCounter().feed(b"-" * (2 << 20))


def test_rows_of_inserts_and_names_are_found() -> None:
    lines = INSERTS.splitlines(keepends=True)
    assert inserted(lines) == {"a`b": 2, "nothing": 0, "many": 4}
    assert list(users(GRANTS.splitlines(keepends=True))) == ["o`'dd@%", "@localhost", "it's@h"]
    said = [b"CREATE ROLE ada;\n", b'CREATE ROLE "o""dd; x";\n', b"ALTER ROLE ada WITH LOGIN;\n"]
    assert list(roles(said)) == ["ada", 'o"dd; x']
    there = (b"CREATE TABLESPACE x OWNER y LOCATION '/z';\n", b"GRANT ALL ON TABLESPACE x TO y;\n",
             b"ALTER TABLESPACE x SET (a=1);\n", b"COMMENT ON TABLESPACE x IS 'y';\n")  # fmt: skip
    assert [loadable(line, 14) for line in there] == [b""] * 4
    assert [loadable(line, 15) for line in there] == [
        b"SET allow_in_place_tablespaces = on; CREATE TABLESPACE x OWNER y LOCATION '';\n", b"", b"", b"",
    ]  # fmt: skip
    assert [loadable(line, 15) for line in said] == said


def test_no_password_is_given_to_a_server_that_loads_dumps() -> None:
    role = b"ALTER ROLE \"a PASSWORD 'b'\" WITH NOSUPERUSER NOREPLICATION NOBYPASSRLS%b VALID UNTIL 'x';\n"
    hashed = b" PASSWORD 'SCRAM-SHA-256$4096:it''s==$b:c'"
    for more in (b"", b" CONNECTION LIMIT -1", b" CONNECTION LIMIT 5"):
        assert loadable(role % (more + hashed), 15) == role % more


def test_no_text_of_a_server_is_told() -> None:
    def said(*lines: str) -> str:
        found = cause("psql", Said(3, b"secret", tuple(lines)))
        assert "secret" not in found.words
        return found.words if found.lacking else found.words.partition(": ")[2]

    assert said("psql:<stdin>:12: ERROR:  23503").startswith("a foreign key")
    assert said("psql:<stdin>:12: ERROR:  S3CR3") == ""
    assert said("ERROR 1452 (23000) at line 3: secret").startswith("a foreign key")
    assert said("ERROR 1999 (SECRE) at line 3: secret") == ""
    refused = "pg_restore: error: could not execute query: ERROR:  "
    words = 'insert or update on table "secret" violates foreign key constraint'
    assert said("pg_restore: from TOC entry 1 secret", refused + words).startswith("a foreign key")
    assert said(refused + 'extension "postgis" is not available') == EXTENSION
    path = 'could not open extension control file "/usr/x.control": No such file or directory'
    assert said(refused + path) == EXTENSION
    assert said(refused + 'could not access file "$libdir/postgis-3": No such file') == EXTENSION
    assert said(refused + 'invalid locale name: "de_DE.UTF-8"') == LOCALE
    assert said(refused + 'invalid LC_COLLATE locale name: "de_DE.UTF-8"') == LOCALE
    assert said(refused + "pg_cron can only be loaded via shared_preload_libraries") == PRELOADED
    assert said(refused + "secret", "secret") == ""
    with pytest.raises(ValueError, match="that is no number"):
        numbers(b"3 secret")


def test_each_table_is_compared_with_both_sides() -> None:
    counts = [["s", "right", 3], ["s", "less", 5], ["s", "gone", 1], ["s", "brought", 2]]
    noted = {"files": [{"file": "x.dump", "database": "x", "counts": counts, "names": []}]}
    (item,) = items(noted)
    loaded = {("s", "right"): 3, ("s", "less"): 4, ("s", "brought"): 9}
    more = frozenset({("s", "brought")})
    assert compared(item, loaded, more) == (2, "table s.less: fewer rows; the dumper noted 5 rows")
    del loaded["s", "less"]
    assert compared(item, loaded, more) == (2, "table s.less: is missing; the dumper noted 5 rows")
    (whole,) = items({"files": [{"file": "x", "counts": counts[:1]}]})
    assert compared(whole, loaded, more) == (1, "")
    (old,) = items({"files": [{"file": "x.dump", "tables": 4}]})
    assert old == Item("x.dump", "", (), (), complete=False)
    for wrong in ("../x", "", "a/b"):
        with pytest.raises(ValueError, match="without a name"):
            list(items({"files": [{"file": wrong}]}))
    with pytest.raises(ValueError, match="number of rows"):
        list(items({"files": [{"file": "x", "counts": [["s", "t", "5"]]}]}))


@pytest.mark.parametrize("made", ["link", "fifo", "directory", "nothing"])
def test_a_file_of_a_dump_leads_nowhere_else(tmp_path: Path, made: str) -> None:
    (tmp_path / "secret").write_text("a password\n")
    place = tmp_path / "shop.sql"
    if made == "link":
        place.symlink_to("secret")
    elif made == "fifo":
        os.mkfifo(place)
    elif made == "directory":
        place.mkdir()
    item = Item("shop.sql", "shop", (), (), complete=True)
    with pytest.raises(ValueError, match=r"shop\.sql"), opened(str(tmp_path), item):
        pass


def test_another_version_is_no_proof() -> None:
    for server in ("PostgreSQL 9999.1 (Debian)", "PostgreSQL", "MySQL 8", ""):
        with pytest.raises(Unproven):
            _programs(server)


def test_no_dump_is_loaded_as_who_asks() -> None:
    brief = SimpleNamespace(mode=Mode.USER, room=SimpleNamespace(grant=Grant("u", 900, 900)))
    ground = Ground(cast("EngineRoom", SimpleNamespace(brief=brief)), "/nowhere/restored", 0.0)
    with pytest.raises(Unproven, match="with --user there is nobody else"):
        ground.__enter__()


def test_only_provers_that_load_dumps_of_servers_may_start_any() -> None:
    def needed(*, kind: str = "postgresql", stream: bool = False, dumps: bool = True) -> bool:
        dump = SimpleNamespace(name="d", kind=kind, stream=stream)
        drill = SimpleNamespace(dumps=dumps)
        job = SimpleNamespace(repositories=("r",), drill=drill, dumps=("d",))
        config = cast("Config", SimpleNamespace(dumps=(dump,), jobs=(job,)))
        assert not servers(config, "another")
        return servers(config, "r")

    assert needed()
    assert needed(kind="mysql")
    assert not needed(kind="sqlite")
    assert not needed(stream=True)
    assert not needed(dumps=False)
    grant = Grant("u", 900, 900, subordinate=(1 << 20, 1 << 16))
    for has in (False, True):
        room = Room("prover-r", RoomKind.PROVER, grant._replace(servers=has))
        assert any("setresuid" in line for line in restoring(room)) == has
