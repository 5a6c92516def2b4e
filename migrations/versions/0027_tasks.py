"""The kinds of runners are known to the code alone (``store.tasks``), so that a new task needs no migration.

Revision ID: 0027
Revises: 0026
"""

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

NAME = "ck_model_versions_runner_known"


def upgrade() -> None:
    op.drop_constraint(op.f(NAME), "model_versions", type_="check")


def downgrade() -> None:
    condition = "runner IN ('torch', 'fake', 'encoder', 'fake-encoder')"
    op.create_check_constraint(op.f(NAME), "model_versions", condition, postgresql_not_valid=True)
