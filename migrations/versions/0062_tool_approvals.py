"""Calls of tools that wait for an approval.

Revision ID: 0062
Revises: 0061
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.isolation import CHANGE, isolate

revision = "0062"
down_revision = "0061"
branch_labels = None
depends_on = None

STATES = "state IN ('pending', 'approved', 'refused', 'expired', 'cancelled')"
OF_ITS_TENANT = ["jobs.tenant_id", "jobs.id"]


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.create_table(
        "tool_approvals",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("step_id", sa.String(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("state", sa.String(), server_default="pending", nullable=False),
        sa.Column("expires_at", time, nullable=False),
        sa.Column("created_at", time, server_default=sa.text("now()"), nullable=False),
        sa.Column("decided_at", time),
        sa.Column("decided_by", sa.String()),
        sa.Column("reason", JSONB()),
        sa.CheckConstraint(STATES, name=op.f("ck_tool_approvals_state_known")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_tool_approvals_tenant_id"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"], OF_ITS_TENANT, name="fk_tool_approvals_tenant_id_job_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "step_id"], OF_ITS_TENANT, name="fk_tool_approvals_tenant_id_step_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_tool_approvals"),
        sa.UniqueConstraint("step_id", name="uq_tool_approvals_step_id"),
    )
    op.create_index("ix_tool_approvals_tenant_id_id", "tool_approvals", ["tenant_id", "id"])
    op.create_index("ix_tool_approvals_job_id", "tool_approvals", ["job_id"])
    op.create_index(
        "ix_tool_approvals_due", "tool_approvals", ["expires_at"], postgresql_where=sa.text("state = 'pending'")
    )
    # A worker stores them and reads the answer, the API answers them.
    isolate("tool_approvals", api=CHANGE, worker=CHANGE)


def downgrade() -> None:
    op.drop_table("tool_approvals")
