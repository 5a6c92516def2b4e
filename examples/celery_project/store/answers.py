"""The answers, in a SQLite file. Each end of a chain is a row: a chain that ended twice has two."""

import os
import sqlite3
from collections import defaultdict
from contextlib import closing

_TABLE = "CREATE TABLE IF NOT EXISTS answers (number int NOT NULL, text text NOT NULL)"


def _connect() -> sqlite3.Connection:
    connection = sqlite3.connect(os.environ.get("ANSWERS", "answers.sqlite"), timeout=60)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute(_TABLE)
    return connection


def save(number: int, text: str) -> None:
    """Store an answer."""
    with closing(_connect()) as connection, connection:
        connection.execute("INSERT INTO answers VALUES (?, ?)", (number, text))


def read() -> dict[int, list[str]]:
    """Return the answers to each review, as often as they came."""
    found: dict[int, list[str]] = defaultdict(list)
    with closing(_connect()) as connection:
        for number, text in connection.execute("SELECT number, text FROM answers"):
            found[number].append(text)
    return dict(found)
