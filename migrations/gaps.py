"""Gaps in tenant isolation: tables without row-level security, and roles with too many rights or none.

A table belongs to tenants if it has ``tenant_id`` or ``job_id``, or refers to such a table; ``tenants`` does too.
Partitions are left out: roles have rights on their tables alone.
"""

from sqlalchemy import Connection, text

from headrace.store.db.roles import API, OPERATOR, WORKER

_TABLES = """
WITH RECURSIVE tables AS (
    SELECT oid, relname, relrowsecurity FROM pg_class
    WHERE relnamespace = to_regnamespace(current_schema()) AND relkind IN ('r', 'p') AND relname <> 'alembic_version'
        AND NOT relispartition
), owned (oid) AS (
    SELECT oid FROM tables WHERE relname = 'tenants' OR EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = tables.oid AND attname IN ('tenant_id', 'job_id') AND NOT attisdropped)
    UNION
    SELECT conrelid FROM pg_constraint JOIN owned ON confrelid = owned.oid WHERE contype = 'f'
)
"""

_WITHOUT_WALLS = text(f"""{_TABLES}
SELECT relname FROM tables JOIN owned USING (oid)
WHERE NOT relrowsecurity OR 3 > (
    SELECT count(DISTINCT role) FROM pg_policy CROSS JOIN unnest(polroles) AS role
    WHERE polrelid = tables.oid AND role = ANY(CAST(CAST(:roles AS text[]) AS regrole[]))
        AND (role <> CAST(:api AS regrole) OR pg_get_expr(polqual, polrelid) <> 'true'))
ORDER BY relname
""")  # noqa: S608 - text of our own

_NOT_GRANTED = text(f"""{_TABLES}
SELECT relname FROM tables WHERE NOT has_table_privilege(:operator, oid, 'SELECT') ORDER BY relname
""")  # noqa: S608 - text of our own

_REWRITABLE = text("""
SELECT role || ' ' || privilege
FROM unnest(CAST(:roles AS text[])) AS role CROSS JOIN unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) AS privilege
WHERE has_table_privilege(role, to_regclass('audit_log'), privilege) ORDER BY 1
""")

_SUPER = text("""
SELECT rolname FROM pg_roles WHERE rolname = ANY(CAST(:roles AS text[])) AND (rolsuper OR rolbypassrls) ORDER BY 1
""")


_MAKES = text("""
SELECT role || ' ' || what
FROM unnest(CAST(:roles AS text[])) AS role CROSS JOIN LATERAL (VALUES
    ('temporary tables', has_database_privilege(role, current_database(), 'TEMPORARY')),
    ('tables', has_schema_privilege(role, current_schema(), 'CREATE')),
    ('large objects', has_function_privilege(role, 'lo_create(oid)', 'EXECUTE'))) AS may(what, is_granted)
WHERE is_granted ORDER BY 1
""")


def find_gaps(connection: Connection) -> list[str]:
    """Return one line for each gap. For a schema before row-level security there is one line that reports this."""
    roles = {"roles": [API, WORKER, OPERATOR]}
    known = text("SELECT count(*) FROM pg_roles WHERE rolname = ANY(CAST(:roles AS text[]))")
    if connection.execute(known, roles).scalar_one() < len(roles["roles"]):
        return ["the roles are not there: upgrade"]
    return [
        *(
            f"{table}: a tenant's, and without row-level security: let its revision call headrace.migrations.isolation"
            for table in connection.execute(_WITHOUT_WALLS, roles | {"api": API}).scalars()
        ),
        *(
            f"{table}: no role may read it: let its revision call headrace.migrations.isolation"
            for table in connection.execute(_NOT_GRANTED, {"operator": OPERATOR}).scalars()
        ),
        *(f"audit_log: may be rewritten: {granted}" for granted in connection.execute(_REWRITABLE, roles).scalars()),
        *(f"may make what is no tenant's: {made}" for made in connection.execute(_MAKES, roles).scalars()),
        *(f"{role}: row-level security does not bind it" for role in connection.execute(_SUPER, roles).scalars()),
    ]
