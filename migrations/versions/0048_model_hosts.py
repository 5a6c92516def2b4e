"""The reports of model hosts.

One new table, which the release before this one does not read.

Revision ID: 0048
Revises: 0047
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.isolation import CHANGE, READ, share

revision = "0048"
down_revision = "0047"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_hosts",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("report", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model_hosts")),
    )
    share("model_hosts", api=READ, worker=CHANGE, operator=READ)


def downgrade() -> None:
    op.drop_table("model_hosts")
