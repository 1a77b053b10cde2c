"""Why a server did not take a dump, in words of our own.

Whoever owns a database chooses what its server says of it: an error's text, and its number too, may hold
what his code has read in another database, and everybody in the group may read what a drill tells. So
errors are told apart by what is known here, and told in these words alone.
Sources: PostgreSQL's errcodes.txt and message texts, MariaDB's errmsg-utf8.txt.
"""

import re
from typing import Final, NamedTuple

from capkeep.rooms.ground import Said

FROM_PSQL: Final = re.compile(r"(?:ERROR|FATAL):  ([0-9A-Z]{5})$")  # with VERBOSITY sqlstate
FROM_MARIADB: Final = re.compile(r"ERROR (\d+) \(([0-9A-Z]{5})\)")
STATES: Final = {
    "08006": "the connection was lost",
    "22P02": "a value is none of its type",
    "23502": "a value is missing",
    "23503": "a foreign key names a row that is not there",
    "23505": "a unique key is there twice",
    "23514": "a row violates a check of its table",
    "25006": "it may only be read",
    "42501": "a right is missing",
    "42601": "its SQL cannot be understood",
    "42704": "something is not there that it names",
    "42710": "something is there twice",
    "42883": "a function is not there that it names",
    "42P01": "a table is not there that it names",
    "53100": "the disk is full",
    "53200": "there is not enough memory",
    "57P01": "the server was ended",
}
NUMBERS: Final = {
    1044: "a right is missing",
    1062: "a unique key is there twice",
    1064: "its SQL cannot be understood",
    1146: "a table is not there that it names",
    1452: "a foreign key names a row that is not there",
    2013: "the connection was lost",
}
# pg_restore knows no such numbers: what the server says in English, as is set for it.
PHRASES: Final = (
    ("violates foreign key constraint", STATES["23503"]),
    ("violates unique constraint", STATES["23505"]),
    ("could not create unique index", STATES["23505"]),
    ("violates check constraint", STATES["23514"]),
    ("violates not-null constraint", STATES["23502"]),
    ("invalid input syntax for type", STATES["22P02"]),
    ("permission denied", STATES["42501"]),
    ("No space left on device", STATES["53100"]),
    ("server closed the connection", STATES["08006"]),
    ("could not read from input file", "the file ends too early"),
    ("input file does not appear to be a valid archive", "it is no archive of pg_dump"),
)
# What the dump needs and this host, or any drill, has not: neither right nor wrong.
EXTENSION: Final = "it needs an extension or a library of the server that is not installed here"
PRELOADED: Final = (
    "it needs an extension that must be preloaded (shared_preload_libraries), which drills do not"
)
LOCALE: Final = "it needs a locale or collation that is not on this host (dpkg-reconfigure locales)"
TABLESPACE: Final = "it needs a tablespace, which only PostgreSQL 15 and newer can make for a drill"
LACKING: Final = (
    (re.compile(r'ERROR:  extension "[^"]*" (is not available|has no installation script)'), EXTENSION),
    (re.compile(r"ERROR:  could not (open extension control|access) file .*No such file"), EXTENSION),
    (re.compile(r"(ERROR|FATAL):  .*preload"), PRELOADED),
    (re.compile(r"ERROR:  (invalid|new) (LC_COLLATE|LC_CTYPE|ICU|locale)"), LOCALE),
    (re.compile(r"ERROR:  (invalid locale|could not create locale|could not open collator)"), LOCALE),
    (re.compile(r'ERROR:  collation "[^"]*" for encoding .* does not exist'), LOCALE),
    (re.compile(r'ERROR:  tablespace "[^"]*" does not exist'), TABLESPACE),
)  # fmt: skip
LACKING_NUMBERS: Final = {
    1126: EXTENSION,
    1127: EXTENSION,
    1273: LOCALE,
    1286: "it needs a storage engine that is not installed here",
    1524: EXTENSION,
}


class Cause(NamedTuple):
    """What became of a dump's file."""

    words: str
    lacking: bool = False  # here, so that nothing is known of the dump


def cause(program: str, said: Said) -> Cause:
    """Why a program failed."""
    for line in said.errors:
        if found := _of_line(line):
            ended = f"{program} ended with {said.code}: {found.words}"
            return found if found.lacking else Cause(ended)
    return Cause(f"{program} ended with {said.code}, for a reason that is not told")


def _of_line(line: str) -> Cause | None:
    """What an error says; None for a line that says nothing known."""
    if found := FROM_PSQL.search(line):
        return Cause(STATES[found[1]]) if found[1] in STATES else None
    if found := FROM_MARIADB.match(line):
        number = int(found[1])
        if number in LACKING_NUMBERS:
            return Cause(LACKING_NUMBERS[number], lacking=True)
        return Cause(NUMBERS[number]) if number in NUMBERS else None
    for pattern, words in LACKING:
        if pattern.search(line):
            return Cause(words, lacking=True)
    return next((Cause(words) for phrase, words in PHRASES if phrase in line), None)
