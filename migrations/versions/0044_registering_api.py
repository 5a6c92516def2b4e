"""The API registers versions: of files that the registry has, and of inference servers.

Revision ID: 0044
Revises: 0043
"""

from alembic import op

from store.db.roles import API

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None

GRANTS = (
    "INSERT, UPDATE (last_version) ON models",
    "INSERT, UPDATE (engine, state, state_at, state_reason, verification, golden) ON model_versions",
)


def upgrade() -> None:
    for grant in GRANTS:
        op.execute(f"GRANT {grant} TO {API}")


def downgrade() -> None:
    for grant in GRANTS:
        op.execute(f"REVOKE {grant} FROM {API}")
