"""What names a job, a batch or an endpoint names one of its own tenant's; no role makes objects in the database.

Revision ID: 0021
Revises: 0020
"""

from alembic import op

from migrations import online

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# What a foreign key with the tenant refers to, and the index that each of these takes the place of.
NAMED = (("jobs", "ix_jobs_tenant_id_id"), ("batches", "ix_batches_tenant_id_id"), ("webhook_endpoints", None))

# A table, the column by which it names a row of another, and the foreign key that did not ask whose that is.
NAMING = (
    ("responses", "job_id", "jobs", "fk_responses_job_id"),
    ("idempotency_keys", "job_id", "jobs", "fk_idempotency_keys_job_id"),
    ("dead_letters", "job_id", "jobs", "fk_dead_letters_job_id"),
    ("webhook_deliveries", "job_id", "jobs", "fk_webhook_deliveries_job_id"),
    ("webhook_deliveries", "endpoint_id", "webhook_endpoints", "fk_webhook_deliveries_endpoint_id"),
    ("webhook_deliveries", "batch_id", "batches", None),
)

LINE_CHECK = """
ALTER POLICY headrace_tenant ON batch_lines WITH CHECK (
    EXISTS (SELECT FROM batches WHERE batches.id = batch_lines.batch_id)
    AND (job_id IS NULL OR EXISTS (SELECT FROM jobs WHERE jobs.id = batch_lines.job_id)))
"""
LINE_CHECK_BEFORE = """
ALTER POLICY headrace_tenant ON batch_lines
WITH CHECK (EXISTS (SELECT FROM batches WHERE batches.id = batch_lines.batch_id))
"""

# Large objects and temporary tables are anybody's by default. The first belong to the server's superuser, and the
# database may be another's than the tables: then the revision says what is left to do.
OBJECTS = """
DO $$
DECLARE
    command text;
BEGIN
    FOR command IN
        SELECT format('{verb} TEMPORARY ON DATABASE %I {word} PUBLIC', current_database())
        UNION ALL SELECT format('{verb} CREATE ON SCHEMA %I {word} PUBLIC', current_schema()) WHERE '{verb}' = 'REVOKE'
        UNION ALL
        SELECT format('{verb} EXECUTE ON FUNCTION %s {word} PUBLIC', pg_proc.oid::regprocedure) FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY(ARRAY[
            'lo_creat', 'lo_create', 'lo_from_bytea', 'lo_open', 'lo_put', 'lo_get', 'lo_truncate', 'lo_truncate64',
            'lo_unlink', 'loread', 'lowrite'])
    LOOP
        BEGIN
            EXECUTE command;
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'this user may not: let the superuser run %', command;
        END;
    END LOOP;
END $$
"""


def upgrade() -> None:
    for table, _ in NAMED:
        online.add_index(f"uq_{table}_tenant_id_id", table, ["tenant_id", "id"], unique=True)
    for table, column, named, _ in NAMING:
        online.add_constraint(
            table,
            f"fk_{table}_tenant_id_{column}",
            f"FOREIGN KEY (tenant_id, {column}) REFERENCES {named} (tenant_id, id) ON DELETE CASCADE",
        )
    for _, index in NAMED:
        if index:
            online.drop_index(index)
    for table, _, _, constraint in NAMING:
        if constraint:
            op.drop_constraint(constraint, table, type_="foreignkey")
    op.execute(LINE_CHECK)
    op.execute(OBJECTS.format(verb="REVOKE", word="FROM"))


def downgrade() -> None:
    for table, index in NAMED:
        if index:
            online.add_index(index, table, ["tenant_id", "id"])
    for table, column, named, constraint in NAMING:
        if constraint:
            online.add_constraint(
                table, constraint, f"FOREIGN KEY ({column}) REFERENCES {named} (id) ON DELETE CASCADE"
            )
    for table, column, _, _ in NAMING:
        op.drop_constraint(f"fk_{table}_tenant_id_{column}", table, type_="foreignkey")
    for table, _ in NAMED:
        op.drop_index(f"uq_{table}_tenant_id_id", table_name=table)
    op.execute(LINE_CHECK_BEFORE)
    op.execute(OBJECTS.format(verb="GRANT", word="TO"))
