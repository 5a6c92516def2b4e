"""Usage by the day, for what is older than the ledger's lines; and ended batches are found by when they were emptied.

Revision ID: 0020
Revises: 0018
"""

import sqlalchemy as sa
from alembic import op

from migrations import online
from migrations.isolation import READ, isolate
from store.db.roles import OPERATOR, WORKER

revision = "0020"
down_revision = "0018"
branch_labels = None
depends_on = None

# The dispatcher may change no usage, so it is a function that moves lines into the totals of their day, and none of
# today's or yesterday's. A day begins at midnight UTC.
ADD_UP = """
CREATE FUNCTION headrace_add_up_usage(whose varchar, older_than_s float8, most int) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
WITH old AS (
    SELECT job_id FROM usage_ledger
    WHERE tenant_id = whose
        AND at < date_trunc('day', now() - make_interval(secs => GREATEST(older_than_s, 86400)), 'UTC')
    ORDER BY at LIMIT most FOR UPDATE SKIP LOCKED
), moved AS (
    DELETE FROM usage_ledger AS line USING old WHERE line.job_id = old.job_id RETURNING line.*
), added AS (
    INSERT INTO usage_days AS total (
        tenant_id, at, alike, api_key_id, project_id, user_id, task, model, model_version, class_rank,
        num_jobs, input_tokens, cached_tokens, output_tokens, cost)
    SELECT tenant_id, date_trunc('day', at, 'UTC'),
        md5(CAST((api_key_id, project_id, user_id, task, model, model_version, class_rank) AS text)),
        api_key_id, project_id, user_id, task, model, model_version, class_rank,
        count(*), sum(input_tokens), sum(cached_tokens), sum(output_tokens), COALESCE(sum(cost), 0)
    FROM moved
    GROUP BY tenant_id, date_trunc('day', at, 'UTC'), api_key_id, project_id, user_id, task, model, model_version,
        class_rank
    ON CONFLICT (tenant_id, at, alike) DO UPDATE SET
        num_jobs = total.num_jobs + EXCLUDED.num_jobs,
        input_tokens = total.input_tokens + EXCLUDED.input_tokens,
        cached_tokens = total.cached_tokens + EXCLUDED.cached_tokens,
        output_tokens = total.output_tokens + EXCLUDED.output_tokens,
        cost = total.cost + EXCLUDED.cost
)
SELECT count(*) FROM moved
$$
"""


def upgrade() -> None:
    online.add_index("ix_batches_purged_at", "batches", ["purged_at"], where="purged_at IS NOT NULL")
    op.create_table(
        "usage_days",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("alike", sa.String(), nullable=False),
        sa.Column("api_key_id", sa.String(), nullable=True),
        sa.Column("project_id", sa.String(), nullable=True),
        sa.Column("user_id", sa.String(), nullable=True),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("class_rank", sa.SmallInteger(), nullable=False),
        sa.Column("num_jobs", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Numeric(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "at", "alike", name=op.f("pk_usage_days")),
    )
    isolate("usage_days", api=READ, worker=READ)
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(ADD_UP.format(schema=schema))
    op.execute("REVOKE EXECUTE ON FUNCTION headrace_add_up_usage(varchar, float8, int) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION headrace_add_up_usage(varchar, float8, int) TO {WORKER}, {OPERATOR}")


def downgrade() -> None:
    """Take the totals away: what was added up is lost."""
    online.drop_index("ix_batches_purged_at")
    op.execute("DROP FUNCTION headrace_add_up_usage(varchar, float8, int)")
    op.drop_table("usage_days")
