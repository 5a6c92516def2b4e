"""Jobs of several steps: the columns of a step and of its flow, and how both are counted and billed.

Revision ID: 0054
Revises: 0053
"""

import sqlalchemy as sa
from alembic import op

revision = "0054"
down_revision = "0053"
branch_labels = None
depends_on = None

# As of 0035. A step is no job more for the limit of open jobs: its flow is counted. Its tokens are counted in the queue
# of its version, also while it waits for other steps, because the price of that version is what they may cost.
COUNT_OPEN = """
CREATE OR REPLACE FUNCTION headrace_count_open() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO open_changes (tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens)
        SELECT tenant_id, COALESCE(api_key_id, ''), {counted_in}, {num_jobs}, sum(GREATEST(cost_tokens, input_tokens)),
            sum(input_tokens), sum(GREATEST(cost_tokens - input_tokens, 0))
        FROM new_rows WHERE state = 'queued' GROUP BY tenant_id, COALESCE(api_key_id, ''), {counted_in};
    ELSE
        INSERT INTO open_changes (tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens)
        SELECT tenant_id, api_key_id, queue, {sum_jobs}, sum(queued * GREATEST(cost_tokens, input_tokens)),
            sum(jobs * input_tokens), sum(jobs * GREATEST(cost_tokens - input_tokens, 0))
        FROM (
            SELECT new_rows.tenant_id, COALESCE(new_rows.api_key_id, '') AS api_key_id, {moved_in} AS queue,
                new_rows.cost_tokens, new_rows.input_tokens, {is_step} AS is_step,
                CAST(new_rows.state IN ('queued', 'running') AS int)
                    - CAST(old_rows.state IN ('queued', 'running') AS int) AS jobs,
                CAST(new_rows.state = 'queued' AS int) - CAST(old_rows.state = 'queued' AS int) AS queued
            FROM old_rows JOIN new_rows USING (id)
            WHERE old_rows.state <> new_rows.state
            UNION ALL
            SELECT new_rows.tenant_id, COALESCE(new_rows.api_key_id, ''), side.queue,
                side.cost_tokens, side.input_tokens, {is_step}, side.jobs, side.jobs
            FROM old_rows JOIN new_rows USING (id) CROSS JOIN LATERAL (VALUES
                (old_rows.queue, -1, old_rows.cost_tokens, old_rows.input_tokens),
                (new_rows.queue, 1, new_rows.cost_tokens, new_rows.input_tokens)
            ) AS side(queue, jobs, cost_tokens, input_tokens)
            WHERE old_rows.state = 'queued' AND new_rows.state = 'queued' AND old_rows.queue <> new_rows.queue
                AND NOT {is_step}
        ) AS moved
        GROUP BY tenant_id, api_key_id, queue;
    END IF;
    RETURN NULL;
END
$$
"""

BEFORE = {
    "counted_in": "queue",
    "num_jobs": "count(*)",
    "sum_jobs": "sum(jobs)",
    "moved_in": "new_rows.queue",
    "is_step": "false",
}
NOW = {
    "counted_in": "CASE WHEN parent_id IS NULL THEN queue ELSE model || '@' || model_version END",
    "num_jobs": "count(*) FILTER (WHERE parent_id IS NULL)",
    "sum_jobs": "COALESCE(sum(jobs) FILTER (WHERE NOT is_step), 0)",
    "moved_in": """CASE WHEN new_rows.parent_id IS NULL THEN new_rows.queue
                    ELSE new_rows.model || '@' || new_rows.model_version END""",
    "is_step": "(new_rows.parent_id IS NOT NULL)",
}

# As of 0040. The tokens of a flow are those of its steps, which are billed as they end. So its own line has none, and
# the cost that it shows stays as it was written.
BILL = """
CREATE OR REPLACE FUNCTION headrace_bill_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    num_input bigint = {billed}COALESCE(CAST(NEW.usage ->> 'input_tokens' AS bigint), 0){end};
    num_cached bigint = {billed}COALESCE(CAST(NEW.usage ->> 'cached_tokens' AS bigint), 0){end};
    num_output bigint = {billed}COALESCE(CAST(NEW.usage ->> 'output_tokens' AS bigint), 0){end};
    num_paid bigint = CASE WHEN OLD.state = 'queued' AND NEW.cache_source IS NOT NULL THEN 0 ELSE num_output END;
    price numeric = (
        SELECT ((num_input - num_cached) * input + num_cached * cached_input + num_paid * output) / 1000000
        FROM model_prices WHERE model = NEW.model AND version = NEW.model_version{priced});
BEGIN
    INSERT INTO usage_ledger (
        job_id, tenant_id, api_key_id, project_id, user_id, task, model, model_version, class_rank, state,
        input_tokens, cached_tokens, output_tokens, cost, at)
    VALUES (
        NEW.id, NEW.tenant_id, NEW.api_key_id, NEW.project_id, NEW.user_id, NEW.task, NEW.model, NEW.model_version,
        NEW.class_rank, NEW.state, num_input, num_cached, num_output, price, NEW.completed_at);
    IF price IS NOT NULL THEN
        NEW.usage = NEW.usage || jsonb_build_object('cost', price);
    END IF;
    RETURN NEW;
END
$$
"""

ALL_BILLED = {"billed": "", "end": "", "priced": ""}
FLOWS_FREE = {
    "billed": "CASE WHEN NEW.task = 'flow' THEN 0 ELSE ",
    "end": " END",
    "priced": " AND NEW.task <> 'flow'",
}


def _count_and_bill(counted: dict[str, str], billed: dict[str, str]) -> None:
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(COUNT_OPEN.format(schema=schema, **counted))
    op.execute(BILL.format(schema=schema, **billed))


def upgrade() -> None:
    # IF NOT EXISTS: the next revision begins with a step outside of a transaction.
    op.execute(
        "ALTER TABLE jobs ADD COLUMN IF NOT EXISTS parent_id varchar, ADD COLUMN IF NOT EXISTS step varchar, "
        "ADD COLUMN IF NOT EXISTS needs varchar[], ADD COLUMN IF NOT EXISTS answer_id varchar"
    )
    _count_and_bill(NOW, FLOWS_FREE)


def downgrade() -> None:
    _count_and_bill(BEFORE, ALL_BILLED)
    for column in ("answer_id", "needs", "step", "parent_id"):
        op.drop_column("jobs", column)
