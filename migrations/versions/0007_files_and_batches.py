"""Files and batches; a webhook may tell of a batch's end.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blobs")),
    )
    op.create_index(op.f("ix_blobs_touched_at"), "blobs", ["touched_at"], unique=False)
    op.create_table(
        "batches",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), server_default="validating", nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("input_file_id", sa.String(), nullable=False),
        sa.Column("input_digest", sa.String(), nullable=True),
        sa.Column("api_key_id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=True),
        sa.Column("completion_window", sa.String(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("output_ttl_s", sa.BigInteger(), nullable=True),
        sa.Column("fingerprint", sa.String(), nullable=True),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("errors", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("next_line", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("num_total", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("num_completed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("num_failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_file_id", sa.String(), nullable=True),
        sa.Column("error_file_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("in_progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finalizing_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelling_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')",
            name=op.f("ck_batches_status_known"),
        ),
        sa.ForeignKeyConstraint(["input_digest"], ["blobs.digest"], name=op.f("fk_batches_input_digest")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_batches_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
        sa.UniqueConstraint("tenant_id", "idempotency_key", name=op.f("uq_batches_tenant_id_idempotency_key")),
    )
    op.create_index(
        "ix_batches_fingerprint",
        "batches",
        ["tenant_id", "fingerprint"],
        unique=False,
        postgresql_where=sa.text("fingerprint IS NOT NULL"),
    )
    op.create_index(op.f("ix_batches_input_digest"), "batches", ["input_digest"], unique=False)
    op.create_index(
        "ix_batches_live",
        "batches",
        ["id"],
        unique=False,
        postgresql_where=sa.text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    )
    op.create_index(op.f("ix_batches_tenant_id_id"), "batches", ["tenant_id", "id"], unique=False)
    op.create_table(
        "files",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name=op.f("fk_files_digest")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_files_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index(op.f("ix_files_digest"), "files", ["digest"], unique=False)
    op.create_index(
        "ix_files_expires_at", "files", ["expires_at"], unique=False, postgresql_where=sa.text("expires_at IS NOT NULL")
    )
    op.create_index(op.f("ix_files_tenant_id_id"), "files", ["tenant_id", "id"], unique=False)
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("custom_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("refusal", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.CheckConstraint("job_id IS NOT NULL OR refusal IS NOT NULL", name=op.f("ck_batch_lines_job_or_refusal")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_batch_lines_batch_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_batch_lines_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch_id", "line", name=op.f("pk_batch_lines")),
        sa.UniqueConstraint("job_id", name=op.f("uq_batch_lines_job_id")),
    )
    op.create_index(
        "ix_batch_lines_under_way",
        "batch_lines",
        ["batch_id"],
        unique=False,
        postgresql_where=sa.text("outcome IS NULL"),
    )
    op.add_column("webhook_deliveries", sa.Column("batch_id", sa.String(), nullable=True))
    op.alter_column("webhook_deliveries", "job_id", existing_type=sa.VARCHAR(), nullable=True)
    op.create_check_constraint(
        op.f("ck_webhook_deliveries_one_subject"), "webhook_deliveries", "(job_id IS NULL) <> (batch_id IS NULL)"
    )
    op.create_unique_constraint(
        op.f("uq_webhook_deliveries_batch_id_type_url"), "webhook_deliveries", ["batch_id", "type", "url"]
    )


def downgrade() -> None:
    op.execute("DELETE FROM webhook_deliveries WHERE job_id IS NULL")
    op.drop_constraint(op.f("ck_webhook_deliveries_one_subject"), "webhook_deliveries", type_="check")
    op.drop_constraint(op.f("uq_webhook_deliveries_batch_id_type_url"), "webhook_deliveries", type_="unique")
    op.alter_column("webhook_deliveries", "job_id", existing_type=sa.VARCHAR(), nullable=False)
    op.drop_column("webhook_deliveries", "batch_id")
    op.drop_index("ix_batch_lines_under_way", table_name="batch_lines", postgresql_where=sa.text("outcome IS NULL"))
    op.drop_table("batch_lines")
    op.drop_index(op.f("ix_files_tenant_id_id"), table_name="files")
    op.drop_index("ix_files_expires_at", table_name="files", postgresql_where=sa.text("expires_at IS NOT NULL"))
    op.drop_index(op.f("ix_files_digest"), table_name="files")
    op.drop_table("files")
    op.drop_index(op.f("ix_batches_tenant_id_id"), table_name="batches")
    op.drop_index(
        "ix_batches_live",
        table_name="batches",
        postgresql_where=sa.text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    )
    op.drop_index(op.f("ix_batches_input_digest"), table_name="batches")
    op.drop_index("ix_batches_fingerprint", table_name="batches", postgresql_where=sa.text("fingerprint IS NOT NULL"))
    op.drop_table("batches")
    op.drop_index(op.f("ix_blobs_touched_at"), table_name="blobs")
    op.drop_table("blobs")
