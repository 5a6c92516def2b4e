"""The schema of the first version: ``0100_initial.sql``, with row-level security, grants and views.

Numbers below 0100 were revisions before the first version.

Revision ID: 0100
Revises:
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

from headrace.migrations.isolation import CHANGE, READ, expose, isolate, isolate_by_parent, make_roles, share
from headrace.store.db.roles import API, OPERATOR, ROLES, WORKER

revision = "0100"
down_revision = None
branch_labels = None
depends_on = None

READ_ADD = "SELECT, INSERT"
READ_CHANGE = "SELECT, INSERT, UPDATE"
LIVE = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"

# Functions that run with the rights of the tables' owner, because their callers have no grant on what they write.
OWNED = (
    "headrace_add_up_usage",
    "headrace_announce_registry",
    "headrace_audit_chain",
    "headrace_bill_job",
    "headrace_count_open",
    "headrace_count_queued",
    "headrace_count_spent",
    "headrace_find_key",
    "headrace_fold_limits",
)
# Of these, the functions that are called by name, and the roles that may. The others run as triggers.
CALLED = {
    "headrace_find_key(text)": (API, OPERATOR),
    "headrace_add_up_usage(varchar, float8, int)": (WORKER, OPERATOR),
    "headrace_fold_limits(int, int)": ROLES,
}

# Where the extension is installed and this user may create it. Without it vectors are compared by plain SQL.
EXTENSION = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') THEN
        CREATE EXTENSION IF NOT EXISTS vector;
    END IF;
EXCEPTION
    WHEN insufficient_privilege OR duplicate_object OR unique_violation OR undefined_file THEN
        RAISE NOTICE 'pgvector was not created: %', SQLERRM;
END $$
"""

# Postgres lets every role make large objects and temporary tables. The first belong to the server's superuser, and the
# database may be another's than the tables: then the revision says what is left to do.
REVOKE_OBJECTS = """
DO $$
DECLARE
    command text;
BEGIN
    FOR command IN
        SELECT format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database())
        UNION ALL SELECT format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', current_schema())
        UNION ALL
        SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', pg_proc.oid::regprocedure) FROM pg_proc
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
BLOB_REFERENCES = f"""
SELECT digest FROM files UNION ALL SELECT input_digest FROM batches WHERE {LIVE}
UNION ALL SELECT digest FROM upload_parts
"""
ENDED_STORES = "SELECT id, tenant_id FROM vector_stores WHERE deleted_at IS NOT NULL OR expires_at <= now()"

# The statement that inserts an event cannot see the job that it inserts too: ``headrace_check_events`` checks it.
CHECK_EVENTS = """
ALTER POLICY headrace_tenant ON job_events WITH CHECK (current_setting('headrace.tenant', true) <> '')
"""
CHECK_LINES = """
ALTER POLICY headrace_tenant ON batch_lines WITH CHECK (
    EXISTS (SELECT FROM batches WHERE batches.id = batch_lines.batch_id)
    AND (job_id IS NULL OR EXISTS (SELECT FROM jobs WHERE jobs.id = batch_lines.job_id)))
"""


def upgrade() -> None:
    make_roles()
    op.execute(EXTENSION)
    # A block of statements has no empty line.
    for block in Path(__file__).with_suffix(".sql").read_text(encoding="utf-8").split("\n\n"):
        if "CREATE " in block:
            # Without parameters, so that a percent sign and a colon are plain characters.
            op.get_bind().exec_driver_sql(block, execution_options={"no_parameters": True})
    for isolated in (_tenants, _models, _jobs, _queues, _usage, _responses, _files_and_batches, _stores_and_tools):
        isolated()
    _webhooks()
    _audit()
    _functions()
    _across_tenants()
    op.execute(REVOKE_OBJECTS)


def _tenants() -> None:
    isolate("tenants", column="id", api=READ, worker=READ)
    isolate("api_keys", api=READ_CHANGE, worker="")
    isolate("limit_overrides", api=READ_CHANGE, worker=READ)
    isolate("retention_overrides", api=READ_CHANGE, worker=READ)
    isolate("policies", api=READ_ADD, worker=READ)


def _models() -> None:
    """The API registers versions, the workers verify them, and the dispatcher moves the alias of a rollout."""
    share("models", api=f"{READ_ADD}, UPDATE (last_version, quality_bound)", worker=READ)
    registered = "engine, state, state_at, state_reason, verification, golden, retired_at"
    verified = "state, state_at, state_reason, verification, verifier, verifying_until"
    share("model_versions", api=f"{READ_ADD}, UPDATE ({registered})", worker=f"{READ}, UPDATE ({verified})")
    share("aliases", api=CHANGE, worker=READ_CHANGE)
    share("rollouts", api=READ_CHANGE, worker="SELECT, UPDATE")
    share("model_hosts", api=READ, worker=CHANGE, operator=READ)
    for table in ("model_files", "model_prices", "model_sampling"):
        share(table, api=READ, worker=READ)


def _jobs() -> None:
    isolate("jobs", api=READ_CHANGE)
    isolate("idempotency_keys", api=READ_ADD)
    isolate("dead_letters", api=CHANGE)
    isolate("cache_entries", api=CHANGE)
    isolate("job_fallbacks", api="SELECT, INSERT, DELETE")
    isolate_by_parent("job_terminal", "jobs", key="job_id", api=READ_ADD)
    # The transaction that accepts a job ends it, if its answer is in the cache.
    isolate_by_parent("job_streams", "jobs", key="job_id", api="SELECT, INSERT, DELETE")
    isolate_by_parent("job_checkpoints", "jobs", key="job_id", api="SELECT, DELETE")
    isolate_by_parent("attempts", "jobs", key="job_id", api="SELECT, UPDATE")
    isolate_by_parent("job_events", "jobs", key="job_id", api=READ_ADD)
    op.execute(CHECK_EVENTS)


def _queues() -> None:
    share("queue_controls", api="SELECT, INSERT, DELETE", worker=READ)
    share("queue_rates", api=READ, worker=CHANGE)
    share("queue_scaling", api=READ, worker=CHANGE, operator=READ)
    share("worker_processes", api=READ, worker=CHANGE, operator=READ)
    share("api_processes", api=CHANGE, worker=READ)
    for table in ("queue_totals", "queue_changes"):
        isolate(table, api="")


def _usage() -> None:
    for table in ("open_totals", "open_changes", "spend_totals", "spend_changes"):
        isolate(table, api=READ)
    for table in ("usage_ledger", "usage_days"):
        isolate(table, api=READ, worker=READ)


def _responses() -> None:
    isolate("prompts", api=CHANGE, worker=READ)
    isolate_by_parent("prompt_versions", "prompts", key="prompt_id", api=READ_ADD, worker=READ)
    isolate_by_parent("prompt_aliases", "prompts", key="prompt_id", api=CHANGE)
    for table in ("responses", "conversations", "conversation_items"):
        isolate(table, api=CHANGE)


def _files_and_batches() -> None:
    share("blobs", api=CHANGE, worker=CHANGE)
    isolate("files", api="SELECT, INSERT, DELETE, UPDATE (job_id)")
    isolate("uploads", api=CHANGE)
    isolate("upload_parts", api=CHANGE)
    isolate("batches", api=READ_CHANGE)
    isolate_by_parent("batch_lines", "batches", key="batch_id", api=READ_CHANGE)
    op.execute(CHECK_LINES)


def _stores_and_tools() -> None:
    for table in ("vector_stores", "vector_store_batches", "vector_store_files"):
        isolate(table, api=CHANGE)
    isolate("vector_store_passages", api="SELECT, DELETE")
    # A worker reads a definition to call the tool, stores approvals and reads the answer. The API answers them.
    isolate("tools", api=CHANGE, worker=READ)
    isolate("tool_approvals", api=CHANGE)


def _webhooks() -> None:
    isolate("webhook_secrets", api=READ_CHANGE, worker=READ)
    isolate("webhook_endpoints", api=CHANGE)
    # The columns are those that change when a delivery is asked for again.
    again = "state, attempts_before, next_attempt_at, delivered_at"
    isolate("webhook_deliveries", api=f"SELECT, INSERT, DELETE, UPDATE ({again})")
    isolate("webhook_attempts", api=READ)


def _audit() -> None:
    isolate("audit_log", api=READ_ADD, worker=READ_ADD, operator=READ_ADD)
    share("audit_heads", api="", worker="", operator=READ)
    share("encryption_keys", api=READ_ADD, worker=READ_ADD)
    share("alembic_version", api=READ, worker=READ, operator=READ)


def _functions() -> None:
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    for function in OWNED:
        op.execute(f"ALTER FUNCTION {function} SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp")
    for function, roles in CALLED.items():
        op.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {', '.join(roles)}")


def _across_tenants() -> None:
    """What the API does for all tenants at once, as narrow as it can be."""
    expose("queue_lines", QUEUE_LINES, api="SELECT, UPDATE (announced_at)", worker=READ, operator=READ)
    expose("queue_counts", QUEUE_COUNTS, api=READ, worker=READ, operator=READ)
    expose("live_batches", f"SELECT id, tenant_id FROM batches WHERE {LIVE}", api=READ)
    expose("expired_files", "SELECT id, expires_at FROM files WHERE expires_at <= now()", api="SELECT, DELETE")
    expose("expired_uploads", "SELECT id, expires_at FROM uploads WHERE expires_at <= now()", api="SELECT, DELETE")
    expose("blob_references", BLOB_REFERENCES, api=READ)
    ended = f"SELECT input_digest FROM batches WHERE NOT {LIVE}"
    expose("ended_inputs", ended, api="SELECT, UPDATE (input_digest)")
    expose("ended_vector_stores", ENDED_STORES, api=READ)
