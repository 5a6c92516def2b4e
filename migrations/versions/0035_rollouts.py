"""Rollouts of model versions; jobs that a rollout routed name it; a queued job that changes its queue is counted.

Revision ID: 0035
Revises: 0034
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.isolation import share
from store.db.roles import WORKER

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

# As of 0002. A job that leaves one queue for another is minus one there and plus one here.
COUNT_QUEUED = """
CREATE OR REPLACE FUNCTION headrace_count_queued() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO queue_changes (queue, tenant_id, class_rank, jobs, tokens, started_jobs, started_tokens)
        SELECT queue, tenant_id, class_rank, count(*), sum(GREATEST(cost_tokens, input_tokens)), 0, 0
        FROM new_rows WHERE state = 'queued' GROUP BY queue, tenant_id, class_rank;
    ELSE
        INSERT INTO queue_changes (queue, tenant_id, class_rank, jobs, tokens, started_jobs, started_tokens)
        SELECT queue, tenant_id, class_rank, sum(jobs), sum(jobs * cost), sum(started), sum(started * cost)
        FROM ({moved}) AS moved
        GROUP BY queue, tenant_id, class_rank;
    END IF;
    RETURN NULL;
END
$$
"""

QUEUED_BEFORE = """
            SELECT new_rows.queue, new_rows.tenant_id, new_rows.class_rank,
                CASE WHEN new_rows.state = 'queued' THEN 1 ELSE -1 END AS jobs,
                CASE WHEN new_rows.state = 'running' THEN 1 ELSE 0 END AS started,
                GREATEST(new_rows.cost_tokens, new_rows.input_tokens) AS cost
            FROM old_rows JOIN new_rows USING (id)
            WHERE (old_rows.state = 'queued') <> (new_rows.state = 'queued')
"""

QUEUED_NOW = QUEUED_BEFORE + """
            UNION ALL
            SELECT side.queue, new_rows.tenant_id, new_rows.class_rank, side.jobs, 0, side.cost
            FROM old_rows JOIN new_rows USING (id) CROSS JOIN LATERAL (VALUES
                (old_rows.queue, -1, GREATEST(old_rows.cost_tokens, old_rows.input_tokens)),
                (new_rows.queue, 1, GREATEST(new_rows.cost_tokens, new_rows.input_tokens))
            ) AS side(queue, jobs, cost)
            WHERE old_rows.state = 'queued' AND new_rows.state = 'queued' AND old_rows.queue <> new_rows.queue
"""

# As of 0012, in the same way.
COUNT_OPEN = """
CREATE OR REPLACE FUNCTION headrace_count_open() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO open_changes (tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens)
        SELECT tenant_id, COALESCE(api_key_id, ''), queue, count(*), sum(GREATEST(cost_tokens, input_tokens)),
            sum(input_tokens), sum(GREATEST(cost_tokens - input_tokens, 0))
        FROM new_rows WHERE state = 'queued' GROUP BY tenant_id, COALESCE(api_key_id, ''), queue;
    ELSE
        INSERT INTO open_changes (tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens)
        SELECT tenant_id, api_key_id, queue, sum(jobs), sum(queued * GREATEST(cost_tokens, input_tokens)),
            sum(jobs * input_tokens), sum(jobs * GREATEST(cost_tokens - input_tokens, 0))
        FROM ({moved}) AS moved
        GROUP BY tenant_id, api_key_id, queue;
    END IF;
    RETURN NULL;
END
$$
"""

OPEN_BEFORE = """
            SELECT new_rows.tenant_id, COALESCE(new_rows.api_key_id, '') AS api_key_id, new_rows.queue,
                new_rows.cost_tokens, new_rows.input_tokens,
                CAST(new_rows.state IN ('queued', 'running') AS int)
                    - CAST(old_rows.state IN ('queued', 'running') AS int) AS jobs,
                CAST(new_rows.state = 'queued' AS int) - CAST(old_rows.state = 'queued' AS int) AS queued
            FROM old_rows JOIN new_rows USING (id)
            WHERE old_rows.state <> new_rows.state
"""

OPEN_NOW = OPEN_BEFORE + """
            UNION ALL
            SELECT new_rows.tenant_id, COALESCE(new_rows.api_key_id, ''), side.queue,
                side.cost_tokens, side.input_tokens, side.jobs, side.jobs
            FROM old_rows JOIN new_rows USING (id) CROSS JOIN LATERAL (VALUES
                (old_rows.queue, -1, old_rows.cost_tokens, old_rows.input_tokens),
                (new_rows.queue, 1, new_rows.cost_tokens, new_rows.input_tokens)
            ) AS side(queue, jobs, cost_tokens, input_tokens)
            WHERE old_rows.state = 'queued' AND new_rows.state = 'queued' AND old_rows.queue <> new_rows.queue
"""


def _count(queued: str, opened: str) -> None:
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(COUNT_QUEUED.format(schema=schema, moved=queued))
    op.execute(COUNT_OPEN.format(schema=schema, moved=opened))


def upgrade() -> None:
    # IF NOT EXISTS: the next revision begins with steps outside of a transaction.
    op.execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS rollout_id varchar")
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("stable_version", sa.Integer(), nullable=False),
        sa.Column("candidate_version", sa.Integer(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("sticky_key", sa.String(), nullable=False),
        sa.Column("steps", postgresql.JSONB(), nullable=False),
        sa.Column("bounds", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("state", sa.String(), server_default="running", nullable=False),
        sa.Column("current_step", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("step_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_by", sa.String(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("evidence", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("revision", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint("mode IN ('canary', 'shadow')", name=op.f("ck_rollouts_mode_known")),
        sa.CheckConstraint(
            "sticky_key IN ('tenant', 'user', 'conversation')", name=op.f("ck_rollouts_sticky_key_known")
        ),
        sa.CheckConstraint(
            "state IN ('running', 'paused', 'promoted', 'aborted', 'rolled_back')", name=op.f("ck_rollouts_state_known")
        ),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (state IN ('running', 'paused'))", name=op.f("ck_rollouts_ended_has_time")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
    )
    op.create_index(
        "uq_rollouts_active",
        "rollouts",
        ["model", "alias"],
        unique=True,
        postgresql_where=sa.text("state IN ('running', 'paused')"),
    )
    op.create_index("ix_rollouts_ended_at", "rollouts", ["ended_at"])
    share("rollouts", api="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE")
    # The dispatcher moves the alias of a rollout that has passed its last step.
    op.execute(f"GRANT INSERT, UPDATE ON aliases TO {WORKER}")
    _count(QUEUED_NOW, OPEN_NOW)


def downgrade() -> None:
    _count(QUEUED_BEFORE, OPEN_BEFORE)
    op.execute(f"REVOKE INSERT, UPDATE ON aliases FROM {WORKER}")
    op.drop_table("rollouts")
    op.drop_column("jobs", "rollout_id")
