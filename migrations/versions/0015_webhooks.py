"""Webhooks: secrets that overlap, why an endpoint is disabled, events about endpoints, and every try of a delivery.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

from migrations.isolation import READ, isolate
from store.db.roles import API

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


# What asking for a delivery again changes of it.
_SENT_AGAIN = "state, attempts_before, next_attempt_at, delivered_at"


def upgrade() -> None:
    op.create_table(
        "webhook_secrets",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("old_secret", sa.String(), nullable=True),
        sa.Column("old_secret_until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_webhook_secrets_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_webhook_secrets")),
    )
    op.add_column("webhook_endpoints", sa.Column("old_secret", sa.String(), nullable=True))
    op.add_column("webhook_endpoints", sa.Column("disabled_reason", sa.String(), nullable=True))
    for name in ("old_secret_until", "failing_since", "last_failed_at"):
        op.add_column("webhook_endpoints", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        op.f("ck_webhook_endpoints_disabled_reason_known"),
        "webhook_endpoints",
        "disabled_reason IN ('gone', 'failing')",
    )
    op.add_column("webhook_deliveries", sa.Column("about_endpoint_id", sa.String(), nullable=True))
    op.add_column(
        "webhook_deliveries", sa.Column("attempts_before", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.drop_constraint(op.f("ck_webhook_deliveries_one_subject"), "webhook_deliveries", type_="check")
    op.create_check_constraint(
        op.f("ck_webhook_deliveries_one_subject"),
        "webhook_deliveries",
        "num_nonnulls(job_id, batch_id, about_endpoint_id) = 1",
    )
    op.create_table(
        "webhook_attempts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("delivery_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["webhook_deliveries.id"],
            name=op.f("fk_webhook_attempts_delivery_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_attempts")),
    )
    op.create_index(op.f("ix_webhook_attempts_delivery_id_id"), "webhook_attempts", ["delivery_id", "id"], unique=False)
    isolate("webhook_secrets", api="SELECT, INSERT, UPDATE", worker=READ)
    isolate("webhook_attempts", api=READ)
    op.execute(f"GRANT UPDATE ({_SENT_AGAIN}) ON webhook_deliveries TO {API}")


def downgrade() -> None:
    op.execute(f"REVOKE UPDATE ({_SENT_AGAIN}) ON webhook_deliveries FROM {API}")
    op.drop_table("webhook_attempts")
    op.execute("DELETE FROM webhook_deliveries WHERE about_endpoint_id IS NOT NULL")
    op.drop_constraint(op.f("ck_webhook_deliveries_one_subject"), "webhook_deliveries", type_="check")
    op.create_check_constraint(
        op.f("ck_webhook_deliveries_one_subject"), "webhook_deliveries", "(job_id IS NULL) <> (batch_id IS NULL)"
    )
    op.drop_column("webhook_deliveries", "attempts_before")
    op.drop_column("webhook_deliveries", "about_endpoint_id")
    op.drop_constraint(op.f("ck_webhook_endpoints_disabled_reason_known"), "webhook_endpoints", type_="check")
    for name in ("last_failed_at", "failing_since", "old_secret_until", "disabled_reason", "old_secret"):
        op.drop_column("webhook_endpoints", name)
    # Receivers of jobs' own URLs go on with the secret that they have.
    op.execute(
        "UPDATE tenants SET webhook_secret = rotated.secret FROM webhook_secrets AS rotated "
        "WHERE rotated.tenant_id = tenants.id"
    )
    op.drop_table("webhook_secrets")
