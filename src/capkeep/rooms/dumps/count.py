"""What is in a database of SQLite's that was restored: a program of its own, confined like an engine."""

import sqlite3
import sys

from capkeep.rooms.dumps.sqlite import look


def main() -> int:
    """Say how many tables and rows a file has (argv), if it is whole. It may be changed by that."""
    try:
        tables, rows = look(sys.argv[1])
    except sqlite3.Error as error:
        print(error, file=sys.stderr)
        return 1
    print(tables, rows)
    return 0
