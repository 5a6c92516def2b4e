"""LoRA adapters are versions with a base.

Revision ID: 0043
Revises: 0042
"""

import sqlalchemy as sa
from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None

NAME = "fk_model_versions_base_model_base_version"


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("base_model", sa.String()))
    op.add_column("model_versions", sa.Column("base_version", sa.Integer()))
    columns = ["base_model", "base_version"], ["model", "version"]
    op.create_foreign_key(op.f(NAME), "model_versions", "model_versions", *columns)


def downgrade() -> None:
    # The release before would answer their jobs without the adapter.
    op.execute("UPDATE model_versions SET retired_at = COALESCE(retired_at, now()) WHERE base_model IS NOT NULL")
    op.drop_constraint(op.f(NAME), "model_versions", type_="foreignkey")
    op.drop_column("model_versions", "base_version")
    op.drop_column("model_versions", "base_model")
