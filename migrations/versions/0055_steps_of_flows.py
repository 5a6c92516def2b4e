"""The steps of a flow are found by an index.

Revision ID: 0055
Revises: 0054
"""

from migrations import online

revision = "0055"
down_revision = "0054"
branch_labels = None
depends_on = None


def upgrade() -> None:
    online.add_index("ix_jobs_steps", "jobs", ["parent_id", "id"], where="parent_id IS NOT NULL")


def downgrade() -> None:
    online.drop_index("ix_jobs_steps")
