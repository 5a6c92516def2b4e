"""Logprobs of the tokens of kept streams and checkpoints.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable, so no row is rewritten and the release before goes on writing.
    for table in ("job_streams", "job_checkpoints"):
        op.add_column(table, sa.Column("logprobs", postgresql.JSONB()))


def downgrade() -> None:
    for table in ("job_streams", "job_checkpoints"):
        op.drop_column(table, "logprobs")
