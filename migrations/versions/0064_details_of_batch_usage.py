"""The usage of a batch has its parts: input tokens from the prefix cache, and output tokens of reasoning.

Revision ID: 0064
Revises: 0063
"""

import sqlalchemy as sa
from alembic import op

revision = "0064"
down_revision = "0063"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A release without the columns counts none of its lines in them.
    op.add_column("batches", sa.Column("cached_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("batches", sa.Column("reasoning_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    op.drop_column("batches", "reasoning_tokens")
    op.drop_column("batches", "cached_tokens")
