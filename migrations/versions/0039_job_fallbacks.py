"""A job of a candidate can be moved to the stable version: its payload for that version, and where it begins anew.

The jobs of a rollout are found by the time of their acceptance.

Revision ID: 0039
Revises: 0038
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import online
from migrations.isolation import isolate

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    online.add_index(
        "ix_jobs_rollout_accepted",
        "jobs",
        ["rollout_id", "model_version", "created_at"],
        where="rollout_id IS NOT NULL",
    )
    op.add_column("jobs", sa.Column("restarts_after", sa.BigInteger(), nullable=True))
    op.create_table(
        "job_fallbacks",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("payload", postgresql.JSONB(), nullable=False),
        sa.Column("input_tokens", sa.Integer(), nullable=False),
        sa.Column("cost_tokens", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_fallbacks_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_fallbacks")),
    )
    isolate("job_fallbacks", api="SELECT, INSERT, DELETE")


def downgrade() -> None:
    online.drop_index("ix_jobs_rollout_accepted")
    op.drop_table("job_fallbacks")
    op.drop_column("jobs", "restarts_after")
