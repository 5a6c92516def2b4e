"""The response cache: its entries, and which job has the answer of which other.

Revision ID: 0040
Revises: 0039
"""

import sqlalchemy as sa
from alembic import op

from migrations.isolation import CHANGE, isolate
from store.db.roles import API

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None

# As revision 0005 has it, but a job that got the answer of another pays nothing for its output.
BILL = """
CREATE OR REPLACE FUNCTION headrace_bill_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    num_input bigint = COALESCE(CAST(NEW.usage ->> 'input_tokens' AS bigint), 0);
    num_cached bigint = COALESCE(CAST(NEW.usage ->> 'cached_tokens' AS bigint), 0);
    num_output bigint = COALESCE(CAST(NEW.usage ->> 'output_tokens' AS bigint), 0);
    num_paid bigint = {paid};
    price numeric = (
        SELECT ((num_input - num_cached) * input + num_cached * cached_input + num_paid * output) / 1000000
        FROM model_prices WHERE model = NEW.model AND version = NEW.model_version);
BEGIN
    INSERT INTO usage_ledger (
        job_id, tenant_id, api_key_id, project_id, user_id, task, model, model_version, class_rank, state,
        input_tokens, cached_tokens, output_tokens, cost, at)
    VALUES (
        NEW.id, NEW.tenant_id, NEW.api_key_id, NEW.project_id, NEW.user_id, NEW.task, NEW.model, NEW.model_version,
        NEW.class_rank, NEW.state, num_input, num_cached, num_output, price, NEW.completed_at);
    IF price IS NOT NULL THEN
        NEW.usage = NEW.usage || jsonb_build_object('cost', price);
    END IF;
    RETURN NEW;
END
$$
"""


def _bill(paid: str) -> None:
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(BILL.format(schema=schema, paid=paid))


def upgrade() -> None:
    # IF NOT EXISTS: the next revision begins with a step outside of a transaction.
    op.execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS cache varchar, ADD COLUMN IF NOT EXISTS cache_source varchar")
    op.create_table(
        "cache_entries",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("class_rank", sa.SmallInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"],
            ["jobs.tenant_id", "jobs.id"],
            name=op.f("fk_cache_entries_tenant_id_job_id"),
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_cache_entries_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "digest", name=op.f("pk_cache_entries")),
    )
    op.create_index(op.f("ix_cache_entries_job_id"), "cache_entries", ["job_id"])
    op.create_index(op.f("ix_cache_entries_tenant_id_created_at"), "cache_entries", ["tenant_id", "created_at"])
    isolate("cache_entries", api=CHANGE)
    # A job that finds its answer in the cache is ended by the transaction that accepts it.
    op.execute(f"GRANT INSERT ON job_streams TO {API}")
    _bill("CASE WHEN OLD.state = 'queued' AND NEW.cache_source IS NOT NULL THEN 0 ELSE num_output END")


def downgrade() -> None:
    _bill("num_output")
    op.execute(f"REVOKE INSERT ON job_streams FROM {API}")
    op.drop_table("cache_entries")
    op.drop_column("jobs", "cache_source")
    op.drop_column("jobs", "cache")
