"""The numbers of workers that the leading dispatcher decides.

One new table, which the release before this one does not read.

Revision ID: 0053
Revises: 0052
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.isolation import CHANGE, READ, share

revision = "0053"
down_revision = "0052"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "queue_scaling",
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("replicas", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("history", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("queue", name=op.f("pk_queue_scaling")),
    )
    share("queue_scaling", api=READ, worker=CHANGE, operator=READ)


def downgrade() -> None:
    op.drop_table("queue_scaling")
