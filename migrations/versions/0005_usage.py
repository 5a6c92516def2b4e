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


def downgrade() -> None:
    op.drop_table("usage_ledger")
    op.drop_table("model_prices")
    op.drop_column("jobs", "callers")
    op.drop_column("jobs", "user_id")
    op.drop_column("jobs", "project_id")
    op.drop_column("jobs", "api_key_id")
