"""A model version may have a default prompt template.

Revision ID: 0052
Revises: 0051
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0052"
down_revision = "0051"
branch_labels = None
depends_on = None

# A release without the column takes each version with a base for a LoRA adapter.
RETIRE = """
UPDATE model_versions SET retired_at = COALESCE(retired_at, now()) WHERE base_model = model OR template IS NOT NULL
"""


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("template", postgresql.JSONB()))


def downgrade() -> None:
    op.execute(RETIRE)
    op.drop_column("model_versions", "template")
