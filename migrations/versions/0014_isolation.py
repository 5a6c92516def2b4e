"""Roles, and row-level security: the API's role sees the rows of the tenants that its transaction names alone.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

from migrations.isolation import CHANGE, READ, expose, isolate, isolate_by_parent, make_roles, share
from store.db.roles import API, OPERATOR, ROLES, WORKER

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


READ_ADD = "SELECT, INSERT"
READ_CHANGE = "SELECT, INSERT, UPDATE"

# These write what nobody may write by hand, in tables that who ends or makes a job need not be granted.
TRIGGERS = ("headrace_bill_job", "headrace_count_queued", "headrace_count_open", "headrace_count_spent")

# A key names its tenant, so whoever looks it up cannot name the tenant before. By its whole id, one at a time.
FIND_KEY = """
CREATE FUNCTION headrace_find_key(key_id text) RETURNS TABLE (
    tenant_id varchar, secret_hash bytea, scopes varchar[], models varchar[], is_disabled boolean,
    is_use_to_note boolean
) LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT key.tenant_id, key.secret_hash, key.scopes, key.models, tenants.disabled_at IS NOT NULL,
        key.last_used_at IS NULL OR key.last_used_at <= now() - interval '1 minute'
    FROM api_keys AS key JOIN tenants ON tenants.id = key.tenant_id
    WHERE key.id = key_id AND key.revoked_at IS NULL AND (key.expires_at IS NULL OR key.expires_at > now());
END
$$
"""

# The event that a job was accepted is inserted by the statement that inserts the job, whose rows no policy of that
# statement can see; at its end they are there. Who names no tenant is bound by the policy, or not at all. Asked row by
# row, by the primary key: a join might read all that the tenants have.
CHECK_EVENTS = """
CREATE FUNCTION headrace_check_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows WHERE (SELECT jobs.id FROM jobs WHERE jobs.id = new_rows.job_id) IS NULL) THEN
        RAISE EXCEPTION 'an event of a job of another tenant' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END
$$
"""

EVENTS_CHECKED = """
CREATE TRIGGER headrace_events_checked AFTER INSERT ON job_events REFERENCING NEW TABLE AS new_rows
FOR EACH STATEMENT WHEN (current_setting('headrace.tenant', true) <> '') EXECUTE FUNCTION headrace_check_events()
"""

# What fair order counts, of every tenant, and nothing of what a job is about.
QUEUE_LINES = """
SELECT id, queue, tenant_id, class_rank, state, is_suspect, announced_at, created_at,
    GREATEST(cost_tokens, input_tokens) AS cost
FROM jobs WHERE state IN ('queued', 'running')
"""

QUEUE_COUNTS = """
SELECT queue, tenant_id, class_rank, jobs, tokens FROM queue_totals
UNION ALL SELECT queue, tenant_id, class_rank, jobs, tokens FROM queue_changes
"""

LIVE = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"


def _tenants() -> None:
    isolate("tenants", column="id", api=READ, worker=READ)
    isolate("api_keys", api=READ_CHANGE, worker="")
    isolate("limit_overrides", api=READ_CHANGE, worker=READ)
    isolate("retention_overrides", api=READ_CHANGE, worker=READ)
    isolate("policies", api=READ_ADD, worker=READ)
    isolate("audit_log", api=READ_ADD, worker=READ_ADD, operator=READ_ADD)
    isolate("webhook_endpoints", api=CHANGE)
    isolate("webhook_deliveries", api="SELECT, INSERT, DELETE")
    isolate("prompts", api=READ_CHANGE, worker=READ)
    isolate_by_parent("prompt_versions", "prompts", key="prompt_id", api=READ_ADD, worker=READ)


def _jobs() -> None:
    isolate("jobs", api=READ_CHANGE)
    isolate("idempotency_keys", api=READ_ADD)
    isolate("responses", api=CHANGE)
    isolate("dead_letters", api=CHANGE)
    isolate_by_parent("job_terminal", "jobs", key="job_id", api=READ_ADD)
    isolate_by_parent("job_streams", "jobs", key="job_id", api="SELECT, DELETE")
    isolate_by_parent("job_checkpoints", "jobs", key="job_id", api="SELECT, DELETE")
    isolate_by_parent("attempts", "jobs", key="job_id", api="SELECT, UPDATE")
    isolate_by_parent("job_events", "jobs", key="job_id", api=READ_ADD)
    op.execute("ALTER POLICY headrace_tenant ON job_events WITH CHECK (current_setting('headrace.tenant', true) <> '')")
    op.execute(CHECK_EVENTS)
    op.execute(EVENTS_CHECKED)


def _files_and_batches() -> None:
    isolate("files", api="SELECT, INSERT, DELETE")
    isolate("batches", api=READ_CHANGE)
    isolate_by_parent("batch_lines", "batches", key="batch_id", api=READ_CHANGE)
    share("blobs", api=CHANGE, worker=CHANGE)


def _counts() -> None:
    for table in ("open_totals", "open_changes", "spend_totals", "spend_changes"):
        isolate(table, api=READ)
    for table in ("queue_totals", "queue_changes"):
        isolate(table, api="")
    isolate("usage_ledger", api=READ, worker=READ)


def _nobodys() -> None:
    for table in ("model_files", "models", "model_versions", "aliases", "model_prices"):
        share(table, api=READ, worker=READ)
    share("queue_controls", api="SELECT, INSERT, DELETE", worker=READ)
    share("queue_rates", api=READ, worker=CHANGE)
    share("api_processes", api=CHANGE, worker=READ)
    for role in ROLES:
        op.execute(f"GRANT SELECT ON alembic_version TO {role}")


def _across_tenants() -> None:
    """What the API does for all tenants at once, as narrow as it can be."""
    expose("queue_lines", QUEUE_LINES, api="SELECT, UPDATE (announced_at)", worker=READ, operator=READ)
    expose("queue_counts", QUEUE_COUNTS, api=READ, worker=READ, operator=READ)
    expose("live_batches", f"SELECT id, tenant_id FROM batches WHERE {LIVE}", api=READ)
    expose("expired_files", "SELECT id, expires_at FROM files WHERE expires_at <= now()", api="SELECT, DELETE")
    referring = f"SELECT digest FROM files UNION ALL SELECT input_digest FROM batches WHERE {LIVE}"
    expose("blob_references", referring, api=READ)
    ended = f"SELECT input_digest FROM batches WHERE NOT {LIVE}"
    expose("ended_inputs", ended, api="SELECT, UPDATE (input_digest)")


def upgrade() -> None:
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    make_roles()
    for part in (_tenants, _jobs, _files_and_batches, _counts, _nobodys, _across_tenants):
        part()
    for function in TRIGGERS:
        op.execute(f"ALTER FUNCTION {function}() SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp")
    op.execute(FIND_KEY.format(schema=schema))
    op.execute("REVOKE EXECUTE ON FUNCTION headrace_find_key(text) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION headrace_find_key(text) TO {API}, {OPERATOR}")


def downgrade() -> None:
    """Take the walls down. The roles stay: another database of the server may have them too."""
    op.execute("DROP FUNCTION headrace_find_key(text)")
    for function in TRIGGERS:
        op.execute(f"ALTER FUNCTION {function}() SECURITY INVOKER RESET ALL")
    for view in ("queue_lines", "queue_counts", "live_batches", "expired_files", "blob_references", "ended_inputs"):
        op.execute(f"DROP VIEW {view}")
    op.execute("DROP TRIGGER headrace_events_checked ON job_events")
    op.execute("DROP FUNCTION headrace_check_events")
    tables = sa.inspect(op.get_bind()).get_table_names()
    bound = op.get_bind().execute(sa.text("SELECT tablename FROM pg_policies WHERE policyname = 'headrace_tenant'"))
    for table in bound.scalars().all():
        op.execute(f"DROP POLICY headrace_tenant ON {table}")
        op.execute(f"DROP POLICY headrace_every_tenant ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    for table in tables:
        op.execute(f"REVOKE ALL ON {table} FROM {', '.join((API, WORKER, OPERATOR))}")
