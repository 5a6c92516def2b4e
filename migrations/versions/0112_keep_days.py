"""Let the dispatcher make and drop the partitions of days.

Revision ID: 0112
Revises: 0111
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

from headrace.store.db.roles import OPERATOR, WORKER

revision = "0112"
down_revision = "0111"
branch_labels = None
depends_on = None

# They run with the rights of the tables' owner.
CALLED = (
    "headrace_make_days(int)",
    "headrace_drop_day(float8, int)",
    "headrace_clear_rest(float8, int)",
    "headrace_add_up_day(float8)",
)


def upgrade() -> None:
    for block in Path(__file__).with_suffix(".sql").read_text(encoding="utf-8").split("\n\n"):
        if "CREATE " in block:
            # Without parameters, so that a percent sign and a colon are plain characters.
            op.get_bind().exec_driver_sql(block, execution_options={"no_parameters": True})
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    for function in CALLED:
        # Not with ``pg_catalog`` first, as elsewhere: they make tables in the first schema, and it is searched anyway.
        op.execute(f"ALTER FUNCTION {function} SECURITY DEFINER SET search_path = {schema}, pg_temp")
        op.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {WORKER}, {OPERATOR}")
