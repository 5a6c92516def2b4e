"""The roles of the database: whom each process logs in as, and whether row-level security binds who did.

What each may do is granted by the revisions (``migrations.isolation``).
"""

from typing import Final

from sqlalchemy import text

from store.db.database import Database, parse_url

API: Final = "headrace_api"
WORKER: Final = "headrace_worker"
OPERATOR: Final = "headrace_operator"
ROLES: Final = (API, WORKER, OPERATOR)


def url_of(database_url: str, role: str, password: str | None = None) -> str:
    """Return the address by which a role logs in to the same database."""
    url = parse_url(database_url).set(username=role, password=password)
    return url.render_as_string(hide_password=False)


_IS_BOUND = text("""
SELECT row_security_active('jobs') AND NOT EXISTS (
    SELECT FROM pg_roles WHERE rolname = ANY(CAST(:spanning AS text[])) AND pg_has_role(rolname, 'USAGE')
)
""")


def is_bound(db: Database) -> bool:
    """Return whether Postgres itself keeps this connection's user to the rows of the tenant that is named."""
    with db.autocommit() as connection:
        return bool(connection.execute(_IS_BOUND, {"spanning": [WORKER, OPERATOR]}).scalar_one())


_CAN_LOG_IN = text("SELECT count(*) FROM pg_roles WHERE rolcanlogin AND rolname = ANY(CAST(:roles AS text[]))")


def can_log_in(db: Database) -> bool:
    """Return whether every role was let in (``python -m migrations roles``)."""
    with db.autocommit() as connection:
        return bool(connection.execute(_CAN_LOG_IN, {"roles": list(ROLES)}).scalar_one() == len(ROLES))
