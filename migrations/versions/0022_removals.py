"""Contents are marked before they are removed, and what comes again gets a name of its own.

Revision ID: 0022
Revises: 0021
"""

import sqlalchemy as sa
from alembic import op

from migrations import online

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    online.add_index("ix_blobs_sha256", "blobs", [sa.text("split_part(digest, '.', 1)")])
    op.add_column("blobs", sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_index("ix_blobs_sha256", table_name="blobs")
    op.drop_column("blobs", "removed_at")
