"""Row-level security and grants, for revisions: which roles may do what with which rows of a table.

    headrace_api        sees and writes the rows of the tenants that its transaction names, and of nobody without one
    headrace_worker     workers and dispatcher: every tenant's rows, no API keys
    headrace_operator   the operator's commands: every tenant's rows

Each revision that makes a table calls ``isolate``, ``isolate_by_parent`` or ``share``; ``python -m migrations check``
fails for a table without. What they do is part of those revisions: it is not changed, another is added beside it.
"""

from typing import Final

from alembic import op

from store.db.roles import API, OPERATOR, ROLES, WORKER

READ: Final = "SELECT"
CHANGE: Final = "SELECT, INSERT, UPDATE, DELETE"

# Made once for each statement, not for each row: a subquery that depends on no row.
_SPEAKS_FOR = "((SELECT string_to_array(current_setting('headrace.tenant', true), ','))::text[])"


def isolate(table: str, *, api: str, worker: str = CHANGE, operator: str = CHANGE, column: str = "tenant_id") -> None:
    """Let the rows of a table be those of the tenant in ``column``; the others are what each role is granted."""
    _bind(table, f"{column} = ANY ({_SPEAKS_FOR})")
    _grant(table, api, worker, operator)


def isolate_by_parent(
    table: str, parent: str, *, key: str, api: str, worker: str = CHANGE, operator: str = CHANGE
) -> None:
    """Let the rows of a table belong to whoever the row of ``parent`` belongs to that ``key`` names by its id."""
    _bind(table, f"EXISTS (SELECT FROM {parent} WHERE {parent}.id = {table}.{key})")
    _grant(table, api, worker, operator)


def share(table: str, *, api: str, worker: str, operator: str = CHANGE) -> None:
    """Let a table be nobody's in particular: each role does with it what it is granted."""
    _grant(table, api, worker, operator)


def expose(view: str, select: str, *, api: str, worker: str = "", operator: str = "") -> None:
    """Make a view through which a role sees, of every tenant's rows, these columns alone. It reads as its owner."""
    op.execute(f"CREATE VIEW {view} AS {select}")
    _grant(view, api, worker, operator)


def make_roles() -> None:
    """Make those roles that are not there, without a way to log in.

    They belong to the whole server: another database's migration may make them at this moment.
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
    # Not FORCE: the owner is who migrates, checks foreign keys and reads for the views; no process is the owner.
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY headrace_tenant ON {table} TO {API} USING ({whose})")
    op.execute(f"CREATE POLICY headrace_every_tenant ON {table} TO {WORKER}, {OPERATOR} USING (true)")


def _grant(table: str, api: str, worker: str, operator: str) -> None:
    for role, granted in ((API, api), (WORKER, worker), (OPERATOR, operator)):
        if granted:
            op.execute(f"GRANT {granted} ON {table} TO {role}")
