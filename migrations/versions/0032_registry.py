"""The life of versions: numbers of deleted ones are not given again, and the API may set aliases and retire.

Revision ID: 0032
Revises: 0031
"""

import sqlalchemy as sa
from alembic import op

from store.db.roles import API

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("last_version", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.execute(f"GRANT INSERT, UPDATE, DELETE ON aliases TO {API}")
    op.execute(f"GRANT UPDATE (retired_at) ON model_versions TO {API}")


def downgrade() -> None:
    op.execute(f"REVOKE UPDATE (retired_at) ON model_versions FROM {API}")
    op.execute(f"REVOKE INSERT, UPDATE, DELETE ON aliases FROM {API}")
    op.drop_column("models", "last_version")
