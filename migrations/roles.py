"""Letting the roles log in. The revisions make them without a way to, because a password is no part of a schema."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from store.db.database import Database
from store.db.roles import ROLES


def let_in(db: Database, passwords: Mapping[str, str]) -> None:
    """Let every role log in, with these passwords; one without keeps what it has. Safe to run again.

    A role that never had a password gets in only where the server asks for none: a socket of its own machine.
    """
    with db.begin() as connection:
        for role in ROLES:
            connection.execute(text(_LET_IN.format(role=role)))
            if password := passwords.get(role):
                connection.exec_driver_sql(_verified_by(connection, role, password))


# Only what changes: to alter a role needs rights that a later run may not have.
_LET_IN = """
DO $$ BEGIN
    IF NOT (SELECT rolcanlogin FROM pg_roles WHERE rolname = '{role}') THEN ALTER ROLE {role} LOGIN; END IF;
END $$
"""


def _verified_by(connection: Connection, role: str, password: str) -> str:
    """Return the statement that sets a password: as its verifier, so that no log of the server has the password."""
    driver: Any = connection.connection.driver_connection
    verifier = driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    return f"ALTER ROLE {role} PASSWORD '{verifier}'"
