"""Keys with an allow-list of models, rotation and last use; tenants that can be disabled.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("models", postgresql.ARRAY(sa.String()), nullable=True))
    op.add_column("api_keys", sa.Column("replaced_by", sa.String(), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "last_used_at")
    op.drop_column("api_keys", "replaced_by")
    op.drop_column("api_keys", "models")
    op.drop_column("tenants", "disabled_at")
