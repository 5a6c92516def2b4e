"""A rollout may divide jobs one by one.

Revision ID: 0058
Revises: 0057
"""

from alembic import op

from migrations import online

revision = "0058"
down_revision = "0057"
branch_labels = None
depends_on = None

_NAME = "ck_rollouts_sticky_key_known"


def upgrade() -> None:
    online.add_constraint("rollouts", _NAME, "CHECK (sticky_key IN ('tenant', 'user', 'conversation', 'job'))")


def downgrade() -> None:
    # The release before knows no such key. Few rows: an operator makes a rollout by hand.
    op.execute("UPDATE rollouts SET sticky_key = 'tenant' WHERE sticky_key = 'job'")
    op.drop_constraint(op.f(_NAME), "rollouts", type_="check")
    op.create_check_constraint(op.f(_NAME), "rollouts", "sticky_key IN ('tenant', 'user', 'conversation')")
