"""A limit of the streams and waits that are open at once.

Revision ID: 0025
Revises: 0024
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; a release that does not know it leaves it null, which is no limit of its own."""
    op.execute("SET LOCAL lock_timeout = '3s'")
    op.add_column("limit_overrides", sa.Column("concurrent_streams", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Take it away."""
    op.drop_column("limit_overrides", "concurrent_streams")
