"""Note the job that made a file.

Revision ID: 0104
Revises: 0103
"""

from alembic import op

revision = "0104"
down_revision = "0103"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE files ADD COLUMN IF NOT EXISTS result_of varchar, ADD COLUMN IF NOT EXISTS position int,
            ADD COLUMN IF NOT EXISTS media_type varchar
    """)
