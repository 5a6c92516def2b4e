"""Checkpoints, dead letters, suspects, queue controls, and counts of what is queued.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


# What joins or leaves the queued jobs is written down by the statement that moves them, whoever sends it: an older
# release's too. Statement-level, so a wave costs one row for each of its queues, tenants and classes.
COUNT_QUEUED = """
CREATE FUNCTION headrace_count_queued() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO queue_changes (queue, tenant_id, class_rank, jobs, tokens, started_jobs, started_tokens)
        SELECT queue, tenant_id, class_rank, count(*), sum(GREATEST(cost_tokens, input_tokens)), 0, 0
        FROM new_rows WHERE state = 'queued' GROUP BY queue, tenant_id, class_rank;
    ELSE
        INSERT INTO queue_changes (queue, tenant_id, class_rank, jobs, tokens, started_jobs, started_tokens)
        SELECT queue, tenant_id, class_rank, sum(jobs), sum(jobs * cost), sum(started), sum(started * cost)
        FROM (
            SELECT new_rows.queue, new_rows.tenant_id, new_rows.class_rank,
                CASE WHEN new_rows.state = 'queued' THEN 1 ELSE -1 END AS jobs,
                CASE WHEN new_rows.state = 'running' THEN 1 ELSE 0 END AS started,
                GREATEST(new_rows.cost_tokens, new_rows.input_tokens) AS cost
            FROM old_rows JOIN new_rows USING (id)
            WHERE (old_rows.state = 'queued') <> (new_rows.state = 'queued')
        ) AS moved
        GROUP BY queue, tenant_id, class_rank;
    END IF;
    RETURN NULL;
END
$$
"""

COUNT_INSERTED = """
CREATE TRIGGER headrace_jobs_inserted AFTER INSERT ON jobs
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION headrace_count_queued()
"""

COUNT_MOVED = """
CREATE TRIGGER headrace_jobs_moved AFTER UPDATE ON jobs
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION headrace_count_queued()
"""

COUNT_WHAT_IS_THERE = """
INSERT INTO queue_totals (queue, tenant_id, class_rank, jobs, tokens)
SELECT queue, tenant_id, class_rank, count(*), sum(input_tokens) FROM jobs WHERE state = 'queued'
GROUP BY queue, tenant_id, class_rank
"""


def upgrade() -> None:
    op.create_table(
        "queue_changes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("class_rank", sa.SmallInteger(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("started_jobs", sa.BigInteger(), nullable=False),
        sa.Column("started_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue_changes")),
    )
    op.create_table(
        "queue_controls",
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("paused_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("queue", name=op.f("pk_queue_controls")),
    )
    op.create_table(
        "queue_rates",
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("jobs_per_s", sa.Double(), nullable=False),
        sa.Column("tokens_per_s", sa.Double(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("queue", name=op.f("pk_queue_rates")),
    )
    op.create_table(
        "queue_totals",
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("class_rank", sa.SmallInteger(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("queue", "tenant_id", "class_rank", name=op.f("pk_queue_totals")),
    )
    op.create_table(
        "dead_letters",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("replayed_as", sa.String(), nullable=True),
        sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_dead_letters_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_dead_letters_tenant_id")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_dead_letters")),
    )
    op.create_index(op.f("ix_dead_letters_tenant_id_job_id"), "dead_letters", ["tenant_id", "job_id"], unique=False)
    op.create_table(
        "job_checkpoints",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("deltas", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("token_ids", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("lineage", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_checkpoints_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_checkpoints")),
    )
    op.add_column(
        "job_streams",
        sa.Column(
            "lineage", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False
        ),
    )
    op.add_column("jobs", sa.Column("cost_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("crashes", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("is_suspect", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("jobs", sa.Column("fingerprint", sa.String(), nullable=True))
    op.drop_index(
        op.f("ix_jobs_queued_tenant_id"), table_name="jobs", postgresql_where="((state)::text = 'queued'::text)"
    )
    op.drop_index(
        op.f("ix_jobs_waiting"),
        table_name="jobs",
        postgresql_where="(((state)::text = 'queued'::text) AND (announced_at IS NULL))",
    )
    op.drop_index("ix_jobs_announced", table_name="jobs", postgresql_where="((state)::text = 'queued'::text)")
    op.create_index(
        "ix_jobs_announced",
        "jobs",
        ["queue", "announced_at"],
        unique=False,
        postgresql_where=sa.text("state = 'queued' AND announced_at IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_waiting",
        "jobs",
        ["queue", "class_rank", "tenant_id", "priority", "deadline_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued' AND announced_at IS NULL AND NOT is_suspect"),
    )
    op.create_index(
        "ix_jobs_fingerprint",
        "jobs",
        ["tenant_id", "fingerprint"],
        unique=False,
        postgresql_where=sa.text("fingerprint IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_queued", "jobs", ["queue", "created_at"], unique=False, postgresql_where=sa.text("state = 'queued'")
    )
    op.create_index(
        "ix_jobs_suspect",
        "jobs",
        ["queue", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued' AND is_suspect"),
    )
    for statement in (COUNT_QUEUED, COUNT_INSERTED, COUNT_MOVED, COUNT_WHAT_IS_THERE):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER headrace_jobs_inserted ON jobs")
    op.execute("DROP TRIGGER headrace_jobs_moved ON jobs")
    op.execute("DROP FUNCTION headrace_count_queued")
    op.drop_index("ix_jobs_suspect", table_name="jobs", postgresql_where=sa.text("state = 'queued' AND is_suspect"))
    op.drop_index("ix_jobs_queued", table_name="jobs", postgresql_where=sa.text("state = 'queued'"))
    op.drop_index("ix_jobs_fingerprint", table_name="jobs", postgresql_where=sa.text("fingerprint IS NOT NULL"))
    op.drop_index(
        "ix_jobs_announced",
        table_name="jobs",
        postgresql_where=sa.text("state = 'queued' AND announced_at IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_announced",
        "jobs",
        ["queue", "announced_at"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.drop_index(
        "ix_jobs_waiting",
        table_name="jobs",
        postgresql_where=sa.text("state = 'queued' AND announced_at IS NULL AND NOT is_suspect"),
    )
    op.create_index(
        op.f("ix_jobs_waiting"),
        "jobs",
        ["queue", "class_rank", "priority", "id"],
        unique=False,
        postgresql_where="(((state)::text = 'queued'::text) AND (announced_at IS NULL))",
    )
    op.create_index(
        op.f("ix_jobs_queued_tenant_id"),
        "jobs",
        ["tenant_id"],
        unique=False,
        postgresql_where="((state)::text = 'queued'::text)",
    )
    op.drop_column("jobs", "fingerprint")
    op.drop_column("jobs", "is_suspect")
    op.drop_column("jobs", "crashes")
    op.drop_column("jobs", "cost_tokens")
    op.drop_column("job_streams", "lineage")
    op.drop_table("job_checkpoints")
    op.drop_index(op.f("ix_dead_letters_tenant_id_job_id"), table_name="dead_letters")
    op.drop_table("dead_letters")
    op.drop_table("queue_totals")
    op.drop_table("queue_rates")
    op.drop_table("queue_controls")
    op.drop_table("queue_changes")
