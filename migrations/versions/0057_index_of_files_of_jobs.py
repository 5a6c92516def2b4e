"""Erasing a job's input finds the file that came with it.

Revision ID: 0057
Revises: 0056
"""

from migrations import online

revision = "0057"
down_revision = "0056"
branch_labels = None
depends_on = None


def upgrade() -> None:
    online.add_index("ix_files_job_id", "files", ["job_id"], where="job_id IS NOT NULL")


def downgrade() -> None:
    online.drop_index("ix_files_job_id")
