"""Which workers live and what they can hold; how a version's tokens are chosen where a request does not say.

Two new tables and no change to others, so the release before this one goes on beside it.

Revision ID: 0018
Revises: 0016
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.isolation import CHANGE, READ, share

revision = "0018"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "worker_processes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("capacity_tokens", sa.Integer(), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker_processes")),
    )
    share("worker_processes", api=READ, worker=CHANGE, operator=READ)
    op.create_table(
        "model_sampling",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sampling", JSONB(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "version"],
            ["model_versions.model", "model_versions.version"],
            name=op.f("fk_model_sampling_model_version"),
        ),
        sa.PrimaryKeyConstraint("model", "version", name=op.f("pk_model_sampling")),
    )
    share("model_sampling", api=READ, worker=READ)


def downgrade() -> None:
    op.drop_table("model_sampling")
    op.drop_table("worker_processes")
