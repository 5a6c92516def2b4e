"""Models that make vectors: the runner kinds encoder and fake-encoder.

Revision ID: 0006
Revises: 0005
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _let_runner_be(condition: str) -> None:
    name = op.f("ck_model_versions_runner_known")
    op.drop_constraint(name, "model_versions", type_="check")
    op.create_check_constraint(name, "model_versions", condition)


def upgrade() -> None:
    _let_runner_be("runner IN ('torch', 'fake', 'encoder', 'fake-encoder')")


def downgrade() -> None:
    _let_runner_be("runner IN ('torch', 'fake')")
