"""``python -m headrace.migrations [upgrade | roles | check | history | vectors | new MESSAGE]``: the schema."""

import argparse
import sys
from collections.abc import Mapping

from headrace.migrations import vector_indexes
from headrace.migrations.drift import find_drift
from headrace.migrations.gaps import find_gaps
from headrace.migrations.roles import let_in
from headrace.migrations.schema import head, history, upgrade, write_revision
from headrace.store.db.database import Database
from headrace.store.db.roles import API, OPERATOR, ROLES, WORKER
from headrace.store.errors import HeadraceError, SettingsError
from headrace.store.logs import configure_logging
from headrace.store.settings import Settings, load_settings

_VARIABLES = {API: "API", WORKER: "WORKER", OPERATOR: "OPERATOR"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command against DATABASE_URL. Returns 1, with a one-line error, if it fails."""
    asked = _parser().parse_args(arguments)
    try:
        settings = load_settings()
        if not settings.database_url:
            raise SettingsError("DATABASE_URL is not set: export it")
        db = Database(settings.database_url, pool_size=2, application_name="headrace-migrations")
        try:
            return _run(db, asked, settings)
        finally:
            db.close()
    except HeadraceError as error:
        sys.stderr.write(f"headrace migrate: {error.message}\n")
        return 1


def _run(db: Database, asked: argparse.Namespace, settings: Settings) -> int:
    lines, code = [], 0
    match asked.command:
        case "check":
            lines = find_drift(db)
            with db.begin() as connection:
                lines += find_gaps(connection)
            code = 1 if lines else 0
            lines = lines or [
                "the schema agrees with headrace.store.schema, and row security covers every tenant's tables"
            ]
        case "history":
            lines = history(db)
        case "new":
            lines = [str(write_revision(db, asked.message))]
        case "vectors":
            lines = vector_indexes.refresh(db) or ["every large vector store has its index"]
        case "roles":
            given = passwords(settings)
            lines = [_upgrade(db), *_let_in(given)]
            let_in(db, given)
        case _:
            lines = [_upgrade(db)]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return code


def _upgrade(db: Database) -> str:
    before = upgrade(db)
    return f"at {head()} already" if before == head() else f"migrated from {before or 'empty'} to {head()}"


def _let_in(given: Mapping[str, str]) -> list[str]:
    """Return lines on the roles that can log in, and on roles without a password."""
    lines = [f"{role} may log in with the password given" for role in ROLES if role in given]
    if without := [role for role in ROLES if role not in given]:
        names = ", ".join(f"HEADRACE_{_VARIABLES[role]}_DATABASE_PASSWORD" for role in without)
        lines.append(
            f"{', '.join(without)} may log in, but got no password: without one from an earlier time that works only "
            f"where the server asks for none, as on a socket of its own machine; {names} would set it"
        )
    return lines


def passwords(settings: Settings) -> dict[str, str]:
    """Return the passwords of the roles that have one in the settings."""
    given = {
        API: settings.api_database_password,
        WORKER: settings.worker_database_password,
        OPERATOR: settings.operator_database_password,
    }
    return {role: password for role, password in given.items() if password}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m headrace.migrations", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("upgrade", help="bring the schema to the newest revision (the default)")
    commands.add_parser(
        "roles", help="upgrade, and let the roles log in, with passwords from HEADRACE_..._DATABASE_PASSWORD"
    )
    commands.add_parser(
        "check", help="compare the schema with headrace.store.schema.tables, and find tables without walls; exit 1 then"
    )
    commands.add_parser("history", help="list the revisions and which are applied")
    commands.add_parser("vectors", help="build the indexes of large vector stores, and drop those of deleted ones")
    commands.add_parser("new", help="write the next revision from the difference").add_argument("message")
    return parser


if __name__ == "__main__":
    configure_logging("INFO")
    sys.exit(main())
