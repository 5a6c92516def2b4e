"""Limits of tenants and keys, what of them is used, and the API processes that share them.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


# As of 0002, and what is open beside what is queued: by tenant and key, so that their limits can be kept.
COUNT_OPEN = """
CREATE FUNCTION headrace_count_open() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO open_changes (tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens)
        SELECT tenant_id, COALESCE(api_key_id, ''), queue, count(*), sum(GREATEST(cost_tokens, input_tokens)),
            sum(input_tokens), sum(GREATEST(cost_tokens - input_tokens, 0))
        FROM new_rows WHERE state = 'queued' GROUP BY tenant_id, COALESCE(api_key_id, ''), queue;
    ELSE
        INSERT INTO open_changes (tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens)
        SELECT tenant_id, api_key_id, queue, sum(jobs), sum(queued * GREATEST(cost_tokens, input_tokens)),
            sum(jobs * input_tokens), sum(jobs * GREATEST(cost_tokens - input_tokens, 0))
        FROM (
            SELECT new_rows.tenant_id, COALESCE(new_rows.api_key_id, '') AS api_key_id, new_rows.queue,
                new_rows.cost_tokens, new_rows.input_tokens,
                CAST(new_rows.state IN ('queued', 'running') AS int)
                    - CAST(old_rows.state IN ('queued', 'running') AS int) AS jobs,
                CAST(new_rows.state = 'queued' AS int) - CAST(old_rows.state = 'queued' AS int) AS queued
            FROM old_rows JOIN new_rows USING (id)
            WHERE old_rows.state <> new_rows.state
        ) AS moved
        GROUP BY tenant_id, api_key_id, queue;
    END IF;
    RETURN NULL;
END
$$
"""

COUNT_INSERTED = """
CREATE TRIGGER headrace_jobs_opened AFTER INSERT ON jobs
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION headrace_count_open()
"""

COUNT_MOVED = """
CREATE TRIGGER headrace_jobs_closed AFTER UPDATE ON jobs
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION headrace_count_open()
"""

COUNT_SPENT = """
CREATE FUNCTION headrace_count_spent() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO spend_changes (tenant_id, api_key_id, month, cost)
    VALUES (NEW.tenant_id, COALESCE(NEW.api_key_id, ''),
        CAST(date_trunc('month', NEW.at AT TIME ZONE 'UTC') AS date), NEW.cost);
    RETURN NULL;
END
$$
"""

COUNT_LEDGER = """
CREATE TRIGGER headrace_ledger_counted AFTER INSERT ON usage_ledger FOR EACH ROW
WHEN (NEW.cost > 0) EXECUTE FUNCTION headrace_count_spent()
"""

# Creating the triggers has locked both tables against writers, so nothing is missed or counted twice.
COUNT_WHAT_IS_OPEN = """
INSERT INTO open_totals (tenant_id, api_key_id, queue, jobs, queued_tokens, input_tokens, output_tokens)
SELECT tenant_id, COALESCE(api_key_id, ''), queue, count(*),
    sum(CASE WHEN state = 'queued' THEN GREATEST(cost_tokens, input_tokens) ELSE 0 END),
    sum(input_tokens), sum(GREATEST(cost_tokens - input_tokens, 0))
FROM jobs WHERE state IN ('queued', 'running') GROUP BY tenant_id, COALESCE(api_key_id, ''), queue
"""

COUNT_WHAT_WAS_SPENT = """
INSERT INTO spend_totals (tenant_id, api_key_id, month, cost)
SELECT tenant_id, COALESCE(api_key_id, ''), CAST(date_trunc('month', at AT TIME ZONE 'UTC') AS date), sum(cost)
FROM usage_ledger WHERE cost > 0 GROUP BY 1, 2, 3
"""


def _counted(*names: str) -> list[sa.Column[object]]:
    return [sa.Column[object](name, sa.BigInteger(), nullable=False) for name in names]


def _whose(*more: str) -> list[sa.Column[object]]:
    return [sa.Column[object](name, sa.String(), nullable=False) for name in ("tenant_id", "api_key_id", *more)]


def _numbered() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False)


def upgrade() -> None:
    op.create_table(
        "limit_overrides",
        _numbered(),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("api_key_id", sa.String(), nullable=True),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("input_tokens_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("concurrent_jobs", sa.BigInteger(), nullable=True),
        sa.Column("queued_tokens", sa.BigInteger(), nullable=True),
        sa.Column("monthly_cost", sa.Numeric(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("set_by IN ('operator', 'tenant')", name=op.f("ck_limit_overrides_set_by_known")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_limit_overrides_tenant_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_limit_overrides_api_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_limit_overrides")),
        sa.UniqueConstraint(
            "tenant_id",
            "api_key_id",
            "set_by",
            name=op.f("uq_limit_overrides_tenant_id_api_key_id_set_by"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_table(
        "open_changes",
        _numbered(),
        *_whose("queue"),
        *_counted("jobs", "queued_tokens", "input_tokens", "output_tokens"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_open_changes")),
    )
    op.create_table(
        "open_totals",
        *_whose("queue"),
        *_counted("jobs", "queued_tokens", "input_tokens", "output_tokens"),
        sa.PrimaryKeyConstraint("tenant_id", "api_key_id", "queue", name=op.f("pk_open_totals")),
    )
    op.create_table(
        "spend_changes",
        _numbered(),
        *_whose(),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("cost", sa.Numeric(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_spend_changes")),
    )
    op.create_table(
        "spend_totals",
        *_whose(),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("cost", sa.Numeric(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "api_key_id", "month", name=op.f("pk_spend_totals")),
    )
    op.create_table(
        "api_processes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_processes")),
    )
    for statement in (
        COUNT_OPEN,
        COUNT_INSERTED,
        COUNT_MOVED,
        COUNT_SPENT,
        COUNT_LEDGER,
        COUNT_WHAT_IS_OPEN,
        COUNT_WHAT_WAS_SPENT,
    ):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER headrace_ledger_counted ON usage_ledger")
    op.execute("DROP FUNCTION headrace_count_spent")
    op.execute("DROP TRIGGER headrace_jobs_opened ON jobs")
    op.execute("DROP TRIGGER headrace_jobs_closed ON jobs")
    op.execute("DROP FUNCTION headrace_count_open")
    for table in ("api_processes", "spend_totals", "spend_changes", "open_totals", "open_changes", "limit_overrides"):
        op.drop_table(table)
