"""Stored chat completions are listed by indexes of their own, of all models and of one.

Revision ID: 0031
Revises: 0030
"""

from migrations import online

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None

WHERE = "is_stored_chat AND state = 'succeeded' AND output_purged_at IS NULL"


def upgrade() -> None:
    online.add_index("ix_jobs_stored_chats", "jobs", ["tenant_id", "id"], where=WHERE)
    online.add_index("ix_jobs_stored_chats_of_model", "jobs", ["tenant_id", "model", "id"], where=WHERE)


def downgrade() -> None:
    online.drop_index("ix_jobs_stored_chats_of_model")
    online.drop_index("ix_jobs_stored_chats")
