"""The engine of a model version: an inference server with its address; NULL is Headrace's own engine.

Revision ID: 0028
Revises: 0027
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("engine", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    """Versions with another engine are retired: the code before knows no runner of their kinds."""
    op.execute("UPDATE model_versions SET retired_at = COALESCE(retired_at, now()) WHERE engine IS NOT NULL")
    op.drop_column("model_versions", "engine")
