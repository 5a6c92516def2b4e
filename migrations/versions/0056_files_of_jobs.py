"""A file that came with a request goes with the input of its job.

Revision ID: 0056
Revises: 0055
"""

from alembic import op

from store.db.roles import API

revision = "0056"
down_revision = "0055"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Revision 0057 makes an index of the column in an online step, so this one may run again.
    op.execute("ALTER TABLE files ADD COLUMN IF NOT EXISTS job_id varchar")
    op.execute(f"GRANT UPDATE (job_id) ON files TO {API}")


def downgrade() -> None:
    op.execute(f"REVOKE UPDATE (job_id) ON files FROM {API}")
    op.drop_column("files", "job_id")
