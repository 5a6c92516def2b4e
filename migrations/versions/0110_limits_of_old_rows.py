"""Say until when the rows lie that are there, for tables that are going to lie in partitions by day.

Rows of the next week still go to the table as it is: it becomes the first partition in the next revision. Until then
the checks refuse rows of after that week, so a migration that was broken off here must be run again within it.

Revision ID: 0110
Revises: 0106
"""

from datetime import UTC, datetime, timedelta

from headrace.migrations import online
from headrace.store.ids import first_id

revision = "0110"
down_revision = "0106"
branch_labels = None
depends_on = None


def upgrade() -> None:
    until = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=8)
    online.add_index("pk_job_events_of_days", "job_events", ["job_id", "id"], unique=True)
    online.add_index("pk_usage_ledger_of_days", "usage_ledger", ["job_id", "at"], unique=True)
    for table in ("job_events", "job_terminal"):
        online.add_constraint(table, f"ck_{table}_before", f"CHECK (job_id < '{first_id('job', until)}')")
    online.add_constraint("usage_ledger", "ck_usage_ledger_before", f"CHECK (at < '{until.isoformat()}')")
