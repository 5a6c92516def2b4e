"""An index of the jobs that wait for their time.

Revision ID: 0103
Revises: 0102
"""

from headrace.migrations import online

revision = "0103"
down_revision = "0102"
branch_labels = None
depends_on = None


def upgrade() -> None:
    online.add_index(
        "ix_jobs_start_after",
        "jobs",
        ["start_after"],
        where="state = 'queued' AND queue = 'cache' AND start_after IS NOT NULL AND task <> 'flow'",
    )
