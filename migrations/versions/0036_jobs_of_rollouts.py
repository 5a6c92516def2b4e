"""The jobs of a rollout are found by two indexes: those that wait, and those that have ended, of each version.

Revision ID: 0036
Revises: 0035
"""

from migrations import online

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    online.add_index(
        "ix_jobs_rollout_queued", "jobs", ["rollout_id", "id"], where="state = 'queued' AND rollout_id IS NOT NULL"
    )
    online.add_index(
        "ix_jobs_rollout_ended",
        "jobs",
        ["rollout_id", "model_version", "completed_at"],
        where="completed_at IS NOT NULL AND rollout_id IS NOT NULL",
    )


def downgrade() -> None:
    online.drop_index("ix_jobs_rollout_ended")
    online.drop_index("ix_jobs_rollout_queued")
