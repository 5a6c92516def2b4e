"""Chat completions that their caller asked to store are marked.

Revision ID: 0030
Revises: 0029
"""

from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # IF NOT EXISTS: the next revision begins with steps outside of a transaction.
    op.execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS is_stored_chat boolean DEFAULT false NOT NULL")


def downgrade() -> None:
    op.drop_column("jobs", "is_stored_chat")
