"""Files that come in parts.

Revision ID: 0029
Revises: 0028
"""

import sqlalchemy as sa
from alembic import op

from migrations.isolation import CHANGE, expose, isolate

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

LIVE = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
REFERRING = f"SELECT digest FROM files UNION ALL SELECT input_digest FROM batches WHERE {LIVE}"


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), server_default="pending", nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("ttl_s", sa.BigInteger(), nullable=True),
        sa.Column("file_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('pending', 'completed', 'cancelled')", name=op.f("ck_uploads_status_known")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_uploads_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_tenant_id_id"), "uploads", ["tenant_id", "id"])
    op.create_index(op.f("ix_uploads_expires_at"), "uploads", ["expires_at"])
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name=op.f("fk_upload_parts_digest")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_upload_parts_tenant_id")),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["uploads.id"], name=op.f("fk_upload_parts_upload_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload_parts")),
    )
    op.create_index(op.f("ix_upload_parts_tenant_id_upload_id"), "upload_parts", ["tenant_id", "upload_id"])
    op.create_index(op.f("ix_upload_parts_upload_id"), "upload_parts", ["upload_id"])
    op.create_index(op.f("ix_upload_parts_digest"), "upload_parts", ["digest"])
    isolate("uploads", api=CHANGE)
    isolate("upload_parts", api=CHANGE)
    expose("expired_uploads", "SELECT id, expires_at FROM uploads WHERE expires_at <= now()", api="SELECT, DELETE")
    op.execute(f"CREATE OR REPLACE VIEW blob_references AS {REFERRING} UNION ALL SELECT digest FROM upload_parts")


def downgrade() -> None:
    op.execute(f"CREATE OR REPLACE VIEW blob_references AS {REFERRING}")
    op.execute("DROP VIEW expired_uploads")
    op.drop_table("upload_parts")
    op.drop_table("uploads")
