"""How long a tenant's contents are kept, and what of a job was emptied.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_INPUT_KEPT = sa.text("completed_at IS NOT NULL AND input_purged_at IS NULL")
_OUTPUT_KEPT = sa.text("completed_at IS NOT NULL AND output_purged_at IS NULL")
_DUE = sa.text("purge_when_ended AND completed_at IS NOT NULL AND output_purged_at IS NULL")
_EMPTY = sa.text("input_purged_at IS NOT NULL AND output_purged_at IS NOT NULL")
_ENDED = sa.text("completed_at IS NOT NULL")
_BATCH_KEPT = sa.text("purged_at IS NULL AND status IN ('failed', 'completed', 'expired', 'cancelled')")


def upgrade() -> None:
    op.create_table(
        "retention_overrides",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("inputs_s", sa.BigInteger(), nullable=True),
        sa.Column("outputs_s", sa.BigInteger(), nullable=True),
        sa.Column("deliveries_s", sa.BigInteger(), nullable=True),
        sa.Column("files_s", sa.BigInteger(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("set_by IN ('operator', 'tenant')", name=op.f("ck_retention_overrides_set_by_known")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_retention_overrides_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "set_by", name=op.f("pk_retention_overrides")),
    )
    op.add_column("jobs", sa.Column("input_purged_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("output_purged_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "jobs", sa.Column("purge_when_ended", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("batches", sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_jobs_input_kept", "jobs", ["tenant_id", "completed_at"], postgresql_where=_INPUT_KEPT)
    op.create_index("ix_jobs_output_kept", "jobs", ["tenant_id", "completed_at"], postgresql_where=_OUTPUT_KEPT)
    op.create_index("ix_jobs_purge_when_ended", "jobs", ["completed_at"], postgresql_where=_DUE)
    op.create_index("ix_jobs_empty", "jobs", ["completed_at"], postgresql_where=_EMPTY)
    op.drop_index("ix_jobs_completed_at", table_name="jobs", postgresql_where=_ENDED)
    op.create_index("ix_batches_kept", "batches", ["tenant_id", "id"], postgresql_where=_BATCH_KEPT)
    op.create_index(op.f("ix_files_tenant_id_created_at"), "files", ["tenant_id", "created_at"])


def downgrade() -> None:
    op.drop_index(op.f("ix_files_tenant_id_created_at"), table_name="files")
    op.drop_index("ix_batches_kept", table_name="batches", postgresql_where=_BATCH_KEPT)
    op.create_index("ix_jobs_completed_at", "jobs", ["completed_at"], postgresql_where=_ENDED)
    op.drop_index("ix_jobs_empty", table_name="jobs", postgresql_where=_EMPTY)
    op.drop_index("ix_jobs_purge_when_ended", table_name="jobs", postgresql_where=_DUE)
    op.drop_index("ix_jobs_output_kept", table_name="jobs", postgresql_where=_OUTPUT_KEPT)
    op.drop_index("ix_jobs_input_kept", table_name="jobs", postgresql_where=_INPUT_KEPT)
    op.drop_column("batches", "purged_at")
    op.drop_column("jobs", "purge_when_ended")
    op.drop_column("jobs", "output_purged_at")
    op.drop_column("jobs", "input_purged_at")
    op.drop_table("retention_overrides")
