"""Login of the database roles. Revisions create them without login, because a password is not part of a schema."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from headrace.store.db.database import Database
from headrace.store.db.roles import ROLES


def let_in(db: Database, passwords: Mapping[str, str]) -> None:
    """Let all roles log in, with these passwords; a role without one keeps its password. Can be repeated.

    A role that never had a password can log in only where the server asks for none: at a local socket.
    """
    with db.begin() as connection:
        for role in ROLES:
            connection.execute(text(_LET_IN.format(role=role)))
            if password := passwords.get(role):
                connection.exec_driver_sql(_verified_by(connection, role, password))


# Only changes: altering a role needs rights that a later run may lack.
_LET_IN = """
DO $$ BEGIN
    IF NOT (SELECT rolcanlogin FROM pg_roles WHERE rolname = '{role}') THEN ALTER ROLE {role} LOGIN; END IF;
END $$
"""


def _verified_by(connection: Connection, role: str, password: str) -> str:
    """Return the statement that sets a password as its SCRAM verifier, so that no server log has the password."""
    driver: Any = connection.connection.driver_connection
    verifier = driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    return f"ALTER ROLE {role} PASSWORD '{verifier}'"
