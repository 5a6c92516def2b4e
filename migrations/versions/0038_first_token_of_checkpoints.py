"""A checkpoint knows when the first token of its job came.

Revision ID: 0038
Revises: 0037
"""

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job_checkpoints", sa.Column("first_token_s", sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column("job_checkpoints", "first_token_s")
