"""Lists find jobs by their state, live batches are limited, and an API process adds up what no dispatcher does.

Revision ID: 0024
Revises: 0022
"""

import sqlalchemy as sa
from alembic import op

from migrations import online
from store.db.roles import API, OPERATOR, WORKER

revision = "0024"
down_revision = "0022"
branch_labels = None
depends_on = None

# The API may not write what its limits are counted by, so it is a function that adds changes to their totals, and does
# nothing else: each change once, by the statement that deletes it. ``past``: so many may wait without harm.
FOLD = """
CREATE FUNCTION headrace_fold_limits(past int, most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    num_open bigint := 0;
    num_spent bigint := 0;
BEGIN
    IF (SELECT count(*) > past FROM (SELECT FROM open_changes LIMIT past + 1) AS waiting) THEN
        WITH taken AS (
            DELETE FROM open_changes WHERE id IN (
                SELECT id FROM open_changes ORDER BY id LIMIT most FOR UPDATE SKIP LOCKED
            ) RETURNING *
        ), added AS (
            INSERT INTO open_totals AS held (
                tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens)
            SELECT tenant_id, api_key_id, queue, sum(jobs), sum(queued_tokens), sum(input_tokens), sum(output_tokens)
            FROM taken GROUP BY tenant_id, api_key_id, queue ORDER BY tenant_id, api_key_id, queue
            ON CONFLICT (tenant_id, api_key_id, queue) DO UPDATE SET
                jobs = held.jobs + EXCLUDED.jobs, queued_tokens = held.queued_tokens + EXCLUDED.queued_tokens,
                input_tokens = held.input_tokens + EXCLUDED.input_tokens,
                output_tokens = held.output_tokens + EXCLUDED.output_tokens
        )
        SELECT count(*) INTO num_open FROM taken;
    END IF;
    IF (SELECT count(*) > past FROM (SELECT FROM spend_changes LIMIT past + 1) AS waiting) THEN
        WITH taken AS (
            DELETE FROM spend_changes WHERE id IN (
                SELECT id FROM spend_changes ORDER BY id LIMIT most FOR UPDATE SKIP LOCKED
            ) RETURNING *
        ), added AS (
            INSERT INTO spend_totals AS held (tenant_id, api_key_id, month, cost)
            SELECT tenant_id, api_key_id, month, sum(cost) FROM taken
            GROUP BY tenant_id, api_key_id, month ORDER BY tenant_id, api_key_id, month
            ON CONFLICT (tenant_id, api_key_id, month) DO UPDATE SET cost = held.cost + EXCLUDED.cost
        )
        SELECT count(*) INTO num_spent FROM taken;
    END IF;
    RETURN GREATEST(num_open, num_spent);
END
$$
"""


def upgrade() -> None:
    online.add_index("ix_jobs_tenant_id_state_id", "jobs", ["tenant_id", "state", "id"])
    op.add_column("limit_overrides", sa.Column("live_batches", sa.BigInteger(), nullable=True))
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(FOLD.format(schema=schema))
    op.execute("REVOKE EXECUTE ON FUNCTION headrace_fold_limits(int, int) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION headrace_fold_limits(int, int) TO {API}, {WORKER}, {OPERATOR}")


def downgrade() -> None:
    online.drop_index("ix_jobs_tenant_id_state_id")
    op.execute("DROP FUNCTION headrace_fold_limits(int, int)")
    op.drop_column("limit_overrides", "live_batches")
