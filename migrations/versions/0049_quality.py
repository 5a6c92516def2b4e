"""A version names the one that it was quantized from, and a model has a bound for the quality of its versions.

Revision ID: 0049
Revises: 0048
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from store.db.roles import API

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("quantized_from", sa.String()))
    op.add_column("models", sa.Column("quality_bound", postgresql.JSONB()))
    op.execute(f"GRANT UPDATE (quality_bound) ON models TO {API}")


def downgrade() -> None:
    op.execute(f"REVOKE UPDATE (quality_bound) ON models FROM {API}")
    op.drop_column("models", "quality_bound")
    op.drop_column("model_versions", "quantized_from")
