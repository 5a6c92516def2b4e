"""Tables whose rows change all the time are vacuumed and analysed after a hundredth of them has changed, not a fifth.

With a million jobs kept, a fifth is two hundred thousand dead rows, which every look at the running jobs passes by.

Revision ID: 0026
Revises: 0025
"""

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

BUSY = (
    "attempts",
    "idempotency_keys",
    "job_checkpoints",
    "jobs",
    "open_changes",
    "open_totals",
    "queue_changes",
    "queue_totals",
    "spend_changes",
    "spend_totals",
    "webhook_deliveries",
)
FACTORS = ("autovacuum_vacuum_scale_factor", "autovacuum_analyze_scale_factor")


def upgrade() -> None:
    """Set the factors. The lock keeps out other changes of the schema and vacuum, no reader and no writer."""
    for table in BUSY:
        op.execute(f"ALTER TABLE {table} SET ({', '.join(f'{factor} = 0.01' for factor in FACTORS)})")


def downgrade() -> None:
    """Leave it to the server's setting again."""
    for table in BUSY:
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(FACTORS)})")
