"""The database roles of the processes, and whether row-level security binds the current user.

The migrations grant the privileges (``migrations.isolation``).
"""

from typing import Final

from sqlalchemy import text

from headrace.store.db.database import Database, parse_url

API: Final = "headrace_api"
WORKER: Final = "headrace_worker"
OPERATOR: Final = "headrace_operator"
ROLES: Final = (API, WORKER, OPERATOR)


# Find out whether row-level security binds this user.
_IS_BOUND = text("""
SELECT row_security_active('jobs') AND NOT EXISTS (
    SELECT FROM pg_roles WHERE rolname = ANY(CAST(:spanning AS text[])) AND pg_has_role(rolname, 'USAGE')
)
""")

# Count the roles that may log in.
_CAN_LOG_IN = text("SELECT count(*) FROM pg_roles WHERE rolcanlogin AND rolname = ANY(CAST(:roles AS text[]))")


def url_of(database_url: str, role: str, password: str | None = None) -> str:
    """Return the address of the same database with the role as its user."""
    url = parse_url(database_url).set(username=role, password=password)
    return url.render_as_string(hide_password=False)


def is_bound(db: Database) -> bool:
    """Return whether row-level security limits this connection's user to the rows of the tenant that is set."""
    with db.autocommit() as connection:
        return bool(connection.execute(_IS_BOUND, {"spanning": [WORKER, OPERATOR]}).scalar_one())


def can_log_in(db: Database) -> bool:
    """Return whether every role may log in (``python -m headrace.migrations roles`` allows it)."""
    with db.autocommit() as connection:
        return bool(connection.execute(_CAN_LOG_IN, {"roles": list(ROLES)}).scalar_one() == len(ROLES))
