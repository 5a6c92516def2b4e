"""``python -m migrations [upgrade | check | history | new MESSAGE]``: upgrade the schema, or look at it."""

import argparse
import sys

from migrations.drift import find_drift
from migrations.schema import head, history, upgrade, write_revision
from store.db import Database
from store.errors import HeadraceError, SettingsError
from store.settings import load_settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command against DATABASE_URL; say what is wrong in one line and return 1 if it cannot be done."""
    asked = _parser().parse_args(arguments)
    try:
        url = load_settings().database_url
        if not url:
            raise SettingsError("DATABASE_URL is not set")
        db = Database(url, pool_size=2, application_name="headrace-migrations")
        try:
            return _run(db, asked)
        finally:
            db.close()
    except HeadraceError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1


def _run(db: Database, asked: argparse.Namespace) -> int:
    lines, code = [], 0
    match asked.command:
        case "check":
            lines = find_drift(db)
            code = 1 if lines else 0
            lines = lines or ["the schema and store.tables agree"]
        case "history":
            lines = history(db)
        case "new":
            lines = [str(write_revision(db, asked.message))]
        case _:
            before = upgrade(db)
            lines = [f"at {head()} already" if before == head() else f"migrated from {before or 'empty'} to {head()}"]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("upgrade", help="bring the schema to the newest revision (the default)")
    commands.add_parser("check", help="compare the schema with store.tables; exit 1 if they differ")
    commands.add_parser("history", help="list the revisions and which are applied")
    commands.add_parser("new", help="write the next revision from the difference").add_argument("message")
    return parser


if __name__ == "__main__":
    sys.exit(main())
