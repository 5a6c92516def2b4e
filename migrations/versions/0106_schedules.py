"""Schedules.

Revision ID: 0106
Revises: 0105
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from headrace.migrations.isolation import CHANGE, READ, expose, isolate

revision = "0106"
down_revision = "0105"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("cron", sa.String(), nullable=False),
        sa.Column("zone", sa.String(), nullable=False),
        sa.Column("definition", postgresql.JSONB(), nullable=False),
        sa.Column("may_overlap", sa.Boolean(), nullable=False),
        sa.Column("missed", sa.String(), nullable=False),
        sa.Column("api_key_id", sa.String(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True)),
        sa.Column("last_at", sa.DateTime(timezone=True)),
        sa.Column("last_run_id", sa.String()),
        sa.Column("num_runs", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("num_skipped", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", postgresql.JSONB()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("missed IN ('skip', 'last', 'all')", name="missed_known"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_schedules_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_schedules_tenant_id_name"),
    )
    op.create_index("ix_schedules_due", "schedules", ["next_at"], postgresql_where=sa.text("next_at IS NOT NULL"))
    isolate("schedules", api=CHANGE)
    due = "SELECT id, tenant_id, next_at FROM schedules WHERE next_at IS NOT NULL"
    expose("due_schedules", due, api=READ)
