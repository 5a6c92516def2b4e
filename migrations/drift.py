"""Schema drift: differences between the migrated schema and the tables that modules declare.

A table that no module declares is of a feature that is not installed, and stays as it is.

The tables are created beside the real ones, in a schema that is rolled back, and Postgres describes both. This compares
types, defaults, checks, foreign keys and partial indexes.
"""

from sqlalchemy import Connection, MetaData, text
from sqlalchemy.schema import CreateSchema

from headrace.migrations.vector_indexes import PREFIX
from headrace.store.db.database import Database
from headrace.store.schema.all_tables import metadata as declared

_SCRATCH = "headrace_drift_check"

_COLUMNS = text("""
SELECT format('%s.%s %s%s%s%s', class.relname, attname, format_type(atttypid, atttypmod),
    CASE WHEN attnotnull THEN ' not null' ELSE '' END,
    CASE WHEN attidentity <> '' THEN ' identity' ELSE '' END,
    COALESCE(' default ' || pg_get_expr(adbin, adrelid), ''))
FROM pg_attribute JOIN pg_class AS class ON class.oid = attrelid
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE class.relnamespace = to_regnamespace(:schema) AND class.relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped
    AND class.relname = ANY(:tables)
""")

_CONSTRAINTS = text("""
SELECT format('%s %s: %s', class.relname, conname, pg_get_constraintdef(pg_constraint.oid))
FROM pg_constraint JOIN pg_class AS class ON class.oid = conrelid
WHERE class.relnamespace = to_regnamespace(:schema) AND contype <> 'n'
    AND class.relname = ANY(:tables)
""")

_INDEXES = text("""
SELECT replace(indexdef, schemaname || '.', '') FROM pg_indexes WHERE schemaname = :schema
    AND tablename = ANY(:tables)
""")


def find_drift(db: Database, metadata: MetaData = declared) -> list[str]:
    """Return one line for each difference: ``+`` is missing in the database, ``-`` is missing in the tables."""
    with db.begin() as connection:
        schema = connection.execute(text("SELECT current_schema()")).scalar_one()
        migrated = _describe(connection, schema, list(metadata.tables))
        wanted = _describe_declared(connection, metadata)
    lines = [f"+ {line}" for line in wanted - migrated] + [f"- {line}" for line in migrated - wanted]
    return sorted(lines, key=lambda line: line[2:])


def _describe_declared(connection: Connection, metadata: MetaData) -> set[str]:
    savepoint = connection.begin_nested()
    connection.execute(CreateSchema(_SCRATCH))
    translated = connection.execution_options(schema_translate_map={None: _SCRATCH})
    metadata.create_all(translated, checkfirst=False)
    description = _describe(connection, _SCRATCH, list(metadata.tables))
    savepoint.rollback()
    return description


def _describe(connection: Connection, schema: str, tables: list[str]) -> set[str]:
    # Names in the search path are printed without their schema, so the two descriptions can be compared.
    connection.execute(text("SELECT set_config('search_path', :schema, true)"), {"schema": schema})
    lines: set[str] = set()
    for statement in (_COLUMNS, _CONSTRAINTS, _INDEXES):
        lines.update(connection.execute(statement, {"schema": schema, "tables": tables}).scalars())
    # Indexes of single vector stores come and go (``migrations.vector_indexes``).
    return {line for line in lines if f"INDEX {PREFIX}" not in line}
