"""The jobs that wait for the answer of another are found by an index.

Revision ID: 0041
Revises: 0040
"""

from migrations import online

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    online.add_index(
        "ix_jobs_sharers", "jobs", ["cache_source"], where="state = 'queued' AND cache_source IS NOT NULL"
    )


def downgrade() -> None:
    online.drop_index("ix_jobs_sharers")
