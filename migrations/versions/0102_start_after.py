"""Jobs and batches that start later: their time.

Revision ID: 0102
Revises: 0101
"""

from alembic import op

revision = "0102"
down_revision = "0101"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: no row is read or rewritten. The index on it is in the next revision.
    op.execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS start_after timestamptz")
    op.execute("ALTER TABLE batches ADD COLUMN IF NOT EXISTS start_after timestamptz")
