"""A table of Celery tasks.

Revision ID: 0101
Revises: 0100
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from headrace.migrations.isolation import CHANGE, isolate

revision = "0101"
down_revision = "0100"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "celery_tasks",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("message", postgresql.JSONB()),
        sa.Column("takes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("confirmed_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"],
            ["jobs.tenant_id", "jobs.id"],
            name="fk_celery_tasks_tenant_id_job_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_celery_tasks_tenant_id"),
        sa.PrimaryKeyConstraint("job_id", name="pk_celery_tasks"),
    )
    op.create_index("uq_celery_tasks_tenant_id_task_id", "celery_tasks", ["tenant_id", "task_id"], unique=True)
    op.create_index("ix_celery_tasks_tenant_id_job_id", "celery_tasks", ["tenant_id", "job_id"])
    op.create_index(
        "ix_celery_tasks_open",
        "celery_tasks",
        ["tenant_id", "due_at"],
        postgresql_where=sa.text("confirmed_at IS NULL"),
    )
    isolate("celery_tasks", api=CHANGE)
