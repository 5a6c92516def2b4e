"""Jobs and batches know the trace of the request that made them.

Revision ID: 0042
Revises: 0041
"""

from alembic import op
from sqlalchemy import Column, String

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None

_TABLES = ("jobs", "batches")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, Column("traceparent", String))


def downgrade() -> None:
    for table in reversed(_TABLES):
        op.drop_column(table, "traceparent")
