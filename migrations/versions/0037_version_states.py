"""A version has its task, a state, and what its verification found; versions of earlier releases are ready.

Revision ID: 0037
Revises: 0036
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from store.db.roles import WORKER

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

STATES = "state IN ('registered', 'ready', 'rejected')"
WRITTEN = "state, state_at, state_reason, verification, verifier, verifying_until"


def upgrade() -> None:
    """The previous release registers without these columns: its versions have no task and are ready."""
    for column in (
        sa.Column("task", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False, server_default=sa.text("'ready'")),
        sa.Column("state_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state_reason", sa.String(), nullable=True),
        sa.Column("verification", postgresql.JSONB(), nullable=True),
        sa.Column("golden", postgresql.JSONB(), nullable=True),
        sa.Column("verifier", sa.String(), nullable=True),
        sa.Column("verifying_until", sa.DateTime(timezone=True), nullable=True),
    ):
        op.add_column("model_versions", column)
    op.create_check_constraint(op.f("ck_model_versions_state_known"), "model_versions", STATES)
    op.execute("""
        UPDATE model_versions SET task = models.task, state_at = model_versions.created_at
        FROM models WHERE models.name = model_versions.model
    """)
    op.execute(f"GRANT UPDATE ({WRITTEN}) ON model_versions TO {WORKER}")


def downgrade() -> None:
    op.execute(f"REVOKE UPDATE ({WRITTEN}) ON model_versions FROM {WORKER}")
    op.drop_constraint(op.f("ck_model_versions_state_known"), "model_versions", type_="check")
    for name in (
        "verifying_until",
        "verifier",
        "golden",
        "verification",
        "state_reason",
        "state_at",
        "state",
        "task",
    ):
        op.drop_column("model_versions", name)
