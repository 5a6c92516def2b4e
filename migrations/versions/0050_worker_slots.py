"""A worker's heartbeat has the number of its slots.

Revision ID: 0050
Revises: 0049
"""

from alembic import op
from sqlalchemy import Column, Integer

revision = "0050"
down_revision = "0049"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker_processes", Column("slots", Integer))


def downgrade() -> None:
    op.drop_column("worker_processes", "slots")
