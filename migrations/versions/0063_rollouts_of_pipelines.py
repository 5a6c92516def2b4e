"""A rollout is of a model or of a pipeline, and a job of a pipeline has the number of the version.

Revision ID: 0063
Revises: 0062
"""

import sqlalchemy as sa
from alembic import op

revision = "0063"
down_revision = "0062"
branch_labels = None
depends_on = None

# A release without the column takes each rollout for one of a model.
NO_PIPELINES = "DELETE FROM rollouts WHERE kind <> 'model'"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("pipeline_version", sa.Integer()))
    op.add_column("rollouts", sa.Column("kind", sa.String(), server_default=sa.text("'model'"), nullable=False))
    op.create_check_constraint("kind_known", "rollouts", "kind IN ('model', 'pipeline')")


def downgrade() -> None:
    op.execute(NO_PIPELINES)
    op.drop_column("rollouts", "kind")
    op.drop_column("jobs", "pipeline_version")
