"""The usage ledger, prices, whom a job's usage is counted for, and how many callers wait for it.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


# What a job used is written down by the transaction that ends it, whoever sends it: an older release's too. The cost is
# by the price of that moment, and goes into the job's usage as well. One that nobody computed has no usage and no row.
BILL = """
CREATE FUNCTION headrace_bill_job() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    num_input bigint = COALESCE(CAST(NEW.usage ->> 'input_tokens' AS bigint), 0);
    num_cached bigint = COALESCE(CAST(NEW.usage ->> 'cached_tokens' AS bigint), 0);
    num_output bigint = COALESCE(CAST(NEW.usage ->> 'output_tokens' AS bigint), 0);
    price numeric = (
        SELECT ((num_input - num_cached) * input + num_cached * cached_input + num_output * output) / 1000000
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

BILLED = """
CREATE TRIGGER headrace_jobs_billed BEFORE UPDATE OF usage ON jobs FOR EACH ROW
WHEN (OLD.completed_at IS NULL AND NEW.completed_at IS NOT NULL AND NEW.usage IS NOT NULL)
EXECUTE FUNCTION headrace_bill_job()
"""


def upgrade() -> None:
    op.add_column("jobs", sa.Column("api_key_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("project_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("user_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("callers", sa.SmallInteger(), server_default=sa.text("1"), nullable=False))
    op.create_table(
        "model_prices",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("input", sa.Numeric(), nullable=False),
        sa.Column("cached_input", sa.Numeric(), nullable=False),
        sa.Column("output", sa.Numeric(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "input >= 0 AND cached_input >= 0 AND output >= 0", name=op.f("ck_model_prices_not_negative")
        ),
        sa.ForeignKeyConstraint(
            ["model", "version"], ["model_versions.model", "model_versions.version"], name=op.f("fk_model_prices_model_version")
        ),
        sa.PrimaryKeyConstraint("model", "version", name=op.f("pk_model_prices")),
    )
    op.create_table(
        "usage_ledger",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("api_key_id", sa.String(), nullable=True),
        sa.Column("project_id", sa.String(), nullable=True),
        sa.Column("user_id", sa.String(), nullable=True),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("class_rank", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Numeric(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_usage_ledger")),
    )
    op.create_index(op.f("ix_usage_ledger_tenant_id_at"), "usage_ledger", ["tenant_id", "at"], unique=False)
    op.execute(BILL)
    op.execute(BILLED)


def downgrade() -> None:
    op.execute("DROP TRIGGER headrace_jobs_billed ON jobs")
    op.execute("DROP FUNCTION headrace_bill_job")
    op.drop_table("usage_ledger")
    op.drop_table("model_prices")
    op.drop_column("jobs", "callers")
    op.drop_column("jobs", "user_id")
    op.drop_column("jobs", "project_id")
    op.drop_column("jobs", "api_key_id")
