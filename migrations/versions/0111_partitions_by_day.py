"""Lay events, ends and usage of jobs in partitions; the dispatcher makes those of the days and drops them.

Events and ends of a job have no foreign key any more: they are dropped with their day (``headrace_drop_day``).

Revision ID: 0111
Revises: 0110
"""

import re
from pathlib import Path

import sqlalchemy as sa
from alembic import op

from headrace.migrations.isolation import READ, isolate, isolate_by_parent

revision = "0111"
down_revision = "0110"
branch_labels = None
depends_on = None

READ_ADD = "SELECT, INSERT"
KEYS = {"job_events": "job_id", "job_terminal": "job_id", "usage_ledger": "at"}
# Less than the second after which Postgres looks for deadlocks: this revision gives way, no statement of a job does.
LOCK = f"SET LOCAL lock_timeout = '900ms'; LOCK TABLE jobs, {', '.join(KEYS)} IN ACCESS EXCLUSIVE MODE"

LAST_EVENT = "SELECT COALESCE(pg_sequence_last_value(pg_get_serial_sequence('job_events', 'id')), 0)"
BEFORE = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = :name AND conrelid = to_regclass(:table)"
CHECK_EVENTS = """
ALTER POLICY headrace_tenant ON job_events WITH CHECK (current_setting('headrace.tenant', true) <> '')
"""


def upgrade() -> None:
    op.execute(LOCK)
    last_event = op.get_bind().execute(sa.text(LAST_EVENT)).scalar_one()
    op.execute("ALTER TABLE job_events ALTER COLUMN id DROP IDENTITY")
    for block in Path(__file__).with_suffix(".sql").read_text(encoding="utf-8").split("\n\n"):
        if "TABLE " in block:
            # Without parameters, so that a percent sign and a colon are plain characters.
            op.get_bind().exec_driver_sql(block, execution_options={"no_parameters": True})
    # The number of an event stands for its order within its job.
    op.execute(f"ALTER TABLE job_events ALTER COLUMN id RESTART WITH {last_event + 1}")
    for table in KEYS:
        _attach(table)
    isolate_by_parent("job_terminal", "jobs", key="job_id", api=READ_ADD)
    isolate_by_parent("job_events", "jobs", key="job_id", api=READ_ADD)
    op.execute(CHECK_EVENTS)
    isolate("usage_ledger", api=READ, worker=READ)


def _attach(table: str) -> None:
    name = f"ck_{table}_before"
    check = op.get_bind().execute(sa.text(BEFORE), {"name": name, "table": f"{table}_old"}).scalar_one()
    until = re.findall(r"'([^']+)'", check)[0]
    op.execute(f"ALTER TABLE {table} ATTACH PARTITION {table}_old FOR VALUES FROM (MINVALUE) TO ('{until}')")
    op.execute(f"ALTER TABLE {table}_old DROP CONSTRAINT {name}")
    op.execute(f"CREATE TABLE {table}_rest PARTITION OF {table} DEFAULT")
