"""Prompts are of a kind, prompt or pipeline, and an alias may have a canary.

Revision ID: 0061
Revises: 0060
"""

import sqlalchemy as sa
from alembic import op

revision = "0061"
down_revision = "0060"
branch_labels = None
depends_on = None

# A release without the column takes each row for a prompt. Jobs keep the steps that they were made of.
NO_PIPELINES = "DELETE FROM prompts WHERE kind <> 'prompt'"


def upgrade() -> None:
    op.add_column("prompts", sa.Column("kind", sa.String(), server_default=sa.text("'prompt'"), nullable=False))
    op.add_column("prompt_aliases", sa.Column("canary_version", sa.Integer()))
    op.add_column("prompt_aliases", sa.Column("canary_percent", sa.Integer()))


def downgrade() -> None:
    op.execute(NO_PIPELINES)
    op.drop_column("prompt_aliases", "canary_percent")
    op.drop_column("prompt_aliases", "canary_version")
    op.drop_column("prompts", "kind")
