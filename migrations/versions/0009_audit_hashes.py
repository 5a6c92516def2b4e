"""What a resource was and became, and the address of whoever changed it, in the audit log.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("before_hash", "after_hash", "address"):
        op.add_column("audit_log", sa.Column(name, sa.String(), nullable=True))


def downgrade() -> None:
    for name in ("before_hash", "after_hash", "address"):
        op.drop_column("audit_log", name)
