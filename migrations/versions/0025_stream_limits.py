"""A limit of the streams and waits that are open at once; a response stores its new items alone.

Revision ID: 0025
Revises: 0024
"""

import sqlalchemy as sa
from alembic import op

from migrations import online

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns; of a release that does not know them the responses have all their items, and no limit is its own."""
    online.add_index(
        "ix_responses_previous_id", "responses", ["tenant_id", "previous_id"], where="previous_id IS NOT NULL"
    )
    op.add_column("limit_overrides", sa.Column("concurrent_streams", sa.BigInteger(), nullable=True))
    op.add_column("responses", sa.Column("goes_on", sa.Boolean(), nullable=False, server_default=sa.text("false")))
    op.add_column("responses", sa.Column("hidden_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Take them away; what goes on from another response has lost the items before its own."""
    online.drop_index("ix_responses_previous_id")
    op.drop_column("responses", "hidden_at")
    op.drop_column("responses", "goes_on")
    op.drop_column("limit_overrides", "concurrent_streams")
