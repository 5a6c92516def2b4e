"""Webhooks of rollouts and versions need a place for their subject; a batch knows the versions that it began with.

Revision ID: 0046
Revises: 0045
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0046"
down_revision = "0045"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Revision 0047 checks the first column in an online step, so this one may run again.
    op.execute("ALTER TABLE webhook_deliveries ADD COLUMN IF NOT EXISTS registry_id varchar")
    op.add_column("batches", sa.Column("model_versions", JSONB))


def downgrade() -> None:
    op.drop_column("batches", "model_versions")
    op.drop_column("webhook_deliveries", "registry_id")
