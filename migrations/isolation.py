"""Row-level security and grants, for revisions: the rights of roles on the rows of a table.

    headrace_api        reads and writes rows of the tenants that its transaction names; without a tenant no rows
    headrace_worker     workers and dispatcher: rows of all tenants, no API keys
    headrace_operator   the operator's commands: rows of all tenants

Each revision that creates a table calls ``isolate``, ``isolate_by_parent`` or ``share``;
``python -m headrace.migrations check`` fails for other tables. These functions are part of released revisions: do not
change them, add new ones.
"""

from typing import Final

from alembic import op

from headrace.store.db.roles import API, OPERATOR, ROLES, WORKER

READ: Final = "SELECT"
CHANGE: Final = "SELECT, INSERT, UPDATE, DELETE"

# Evaluated once for each statement, not for each row, because the subquery depends on no row.
_SPEAKS_FOR = "((SELECT string_to_array(current_setting('headrace.tenant', true), ','))::text[])"


def isolate(table: str, *, api: str, worker: str = CHANGE, operator: str = CHANGE, column: str = "tenant_id") -> None:
    """Isolate the rows of a table by the tenant in ``column``. The other arguments are the grants of each role."""
    _bind(table, f"{column} = ANY ({_SPEAKS_FOR})")
    _grant(table, api, worker, operator)


def isolate_by_parent(
    table: str, parent: str, *, key: str, api: str, worker: str = CHANGE, operator: str = CHANGE
) -> None:
    """Isolate the rows of a table by the tenant of the ``parent`` row with the id in ``key``."""
    _bind(table, f"EXISTS (SELECT FROM {parent} WHERE {parent}.id = {table}.{key})")
    _grant(table, api, worker, operator)


def share(table: str, *, api: str, worker: str, operator: str = CHANGE) -> None:
    """Grant roles rights on a table that has no tenants."""
    _grant(table, api, worker, operator)


def expose(view: str, select: str, *, api: str, worker: str = "", operator: str = "") -> None:
    """Create a view for a role of these columns of all tenants' rows. The view reads with its owner's rights."""
    op.execute(f"CREATE VIEW {view} AS {select}")
    _grant(view, api, worker, operator)


def make_roles() -> None:
    """Create missing roles, without login.

    Roles belong to the whole server, so the migration of another database may create them at the same time.
    """
    for role in ROLES:
        op.execute(_MAKE_ROLE.format(role=role))


_MAKE_ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
        CREATE ROLE {role} NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'this user may not make the role {role}: let one who may run CREATE ROLE {role} NOLOGIN'
            USING ERRCODE = 'insufficient_privilege';
END $$
"""


def _bind(table: str, whose: str) -> None:
    # Not FORCE: the owner migrates, checks foreign keys and reads for the views; no process runs as the owner.
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY headrace_tenant ON {table} TO {API} USING ({whose})")
    op.execute(f"CREATE POLICY headrace_every_tenant ON {table} TO {WORKER}, {OPERATOR} USING (true)")


def _grant(table: str, api: str, worker: str, operator: str) -> None:
    for role, granted in ((API, api), (WORKER, worker), (OPERATOR, operator)):
        if granted:
            op.execute(f"GRANT {granted} ON {table} TO {role}")
