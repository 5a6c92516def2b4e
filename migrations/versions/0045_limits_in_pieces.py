"""Changes of limits are added up in pieces of the size that was asked for, under every plan.

Revision ID: 0045
Revises: 0044
"""

import sqlalchemy as sa
from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None

# As in revision 0024, but the rows to take are found once. Under a nested loop Postgres runs an IN (SELECT ... LIMIT ...
# FOR UPDATE) once a row, and each run takes other rows than the one before.
FOLD = """
CREATE OR REPLACE FUNCTION headrace_fold_limits(past int, most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    num_open bigint := 0;
    num_spent bigint := 0;
BEGIN
    IF (SELECT count(*) > past FROM (SELECT FROM open_changes LIMIT past + 1) AS waiting) THEN
        WITH taken AS (
            DELETE FROM open_changes WHERE id = ANY (ARRAY(
                SELECT id FROM open_changes ORDER BY id LIMIT most FOR UPDATE SKIP LOCKED
            )) RETURNING *
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
            DELETE FROM spend_changes WHERE id = ANY (ARRAY(
                SELECT id FROM spend_changes ORDER BY id LIMIT most FOR UPDATE SKIP LOCKED
            )) RETURNING *
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
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(FOLD.format(schema=schema))


def downgrade() -> None:
    """Keep the function: it does what the earlier release expects of it."""
