"""Vector stores: their files, and passages with vectors and words.

Revision ID: 0059
Revises: 0058
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL, TSVECTOR

from migrations import online
from migrations.isolation import CHANGE, expose, isolate

revision = "0059"
down_revision = "0058"
branch_labels = None
depends_on = None

# Where the extension is installed and this user may create it. Without it vectors are compared by plain SQL.
EXTENSION = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') THEN
        CREATE EXTENSION IF NOT EXISTS vector;
    END IF;
EXCEPTION
    WHEN insufficient_privilege OR duplicate_object OR unique_violation OR undefined_file THEN
        RAISE NOTICE 'pgvector was not created: %', SQLERRM;
END $$
"""


def at(name: str, *, required: bool = False) -> sa.Column[Any]:
    now = sa.text("now()") if required else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=now, nullable=not required)


def fields(name: str) -> sa.Column[Any]:
    return sa.Column(name, JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False)


def of_tenant(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=f"fk_{table}_tenant_id")


def of_its_tenant(table: str, column: str, parent: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id", column],
        [f"{parent}.tenant_id", f"{parent}.id"],
        name=f"fk_{table}_tenant_id_{column}",
        ondelete="CASCADE",
    )


def upgrade() -> None:
    # Unique, for the foreign key of ``vector_store_files``; it takes the place of the index of the same columns.
    online.add_index("uq_files_tenant_id_id", "files", ["tenant_id", "id"], unique=True)
    online.drop_index("ix_files_tenant_id_id")
    op.execute(EXTENSION)
    _make_stores()
    _make_files()
    _make_passages()
    isolate("vector_stores", api=CHANGE)
    isolate("vector_store_batches", api=CHANGE)
    isolate("vector_store_files", api=CHANGE)
    isolate("vector_store_passages", api="SELECT, DELETE")
    expose(
        "ended_vector_stores",
        "SELECT id, tenant_id FROM vector_stores WHERE deleted_at IS NOT NULL OR expires_at <= now()",
        api="SELECT",
    )


def _make_stores() -> None:
    op.create_table(
        "vector_stores",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        fields("metadata"),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("dimensions", sa.Integer(), nullable=False),
        sa.Column("expires_days", sa.Integer(), nullable=True),
        at("created_at", required=True),
        at("last_active_at", required=True),
        at("expires_at"),
        at("deleted_at"),
        of_tenant("vector_stores"),
        sa.PrimaryKeyConstraint("id", name="pk_vector_stores"),
    )
    op.create_index("uq_vector_stores_tenant_id_id", "vector_stores", ["tenant_id", "id"], unique=True)
    for column in ("expires_at", "deleted_at"):
        where = sa.text(f"{column} IS NOT NULL")
        op.create_index(f"ix_vector_stores_{column}", "vector_stores", [column], postgresql_where=where)
    op.create_table(
        "vector_store_batches",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("store_id", sa.String(), nullable=False),
        at("created_at", required=True),
        at("cancelled_at"),
        of_tenant("vector_store_batches"),
        of_its_tenant("vector_store_batches", "store_id", "vector_stores"),
        sa.PrimaryKeyConstraint("id", name="pk_vector_store_batches"),
    )
    op.create_index("ix_vector_store_batches_tenant_id_store_id", "vector_store_batches", ["tenant_id", "store_id"])


def _make_files() -> None:
    table = "vector_store_files"
    op.create_table(
        table,
        sa.Column("store_id", sa.String(), nullable=False),
        sa.Column("file_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("ticket", sa.String(), nullable=False),
        sa.Column("batch_id", sa.String(), nullable=True),
        sa.Column("job_id", sa.String(), nullable=True),
        at("completed_at"),
        sa.Column("num_passages", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        fields("attributes"),
        sa.Column("chunk_tokens", sa.Integer(), nullable=False),
        sa.Column("overlap_tokens", sa.Integer(), nullable=False),
        at("created_at", required=True),
        of_tenant(table),
        of_its_tenant(table, "store_id", "vector_stores"),
        of_its_tenant(table, "file_id", "files"),
        sa.PrimaryKeyConstraint("store_id", "file_id", name="pk_vector_store_files"),
    )
    op.create_index("uq_vector_store_files_ticket", table, ["ticket"], unique=True)
    op.create_index("ix_vector_store_files_tenant_id_file_id", table, ["tenant_id", "file_id"])
    op.create_index(
        "ix_vector_store_files_tenant_id_store_id_created_at", table, ["tenant_id", "store_id", "created_at"]
    )
    in_batch = sa.text("batch_id IS NOT NULL")
    op.create_index("ix_vector_store_files_batch_id", table, ["batch_id"], postgresql_where=in_batch)


def _make_passages() -> None:
    table = "vector_store_passages"
    op.create_table(
        table,
        sa.Column("store_id", sa.String(), nullable=False),
        sa.Column("file_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("content", JSONB(), nullable=False),
        sa.Column("terms", TSVECTOR(), nullable=False),
        sa.Column("embedding", ARRAY(REAL()), nullable=False),
        at("created_at", required=True),
        of_tenant(table),
        sa.ForeignKeyConstraint(
            ["store_id", "file_id"],
            ["vector_store_files.store_id", "vector_store_files.file_id"],
            name="fk_vector_store_passages_store_id_file_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("store_id", "file_id", "position", name="pk_vector_store_passages"),
    )
    op.create_index("ix_vector_store_passages_terms", table, ["terms"], postgresql_using="gin")


def downgrade() -> None:
    online.add_index("ix_files_tenant_id_id", "files", ["tenant_id", "id"])
    op.execute("DROP VIEW ended_vector_stores")
    for table in ("vector_store_passages", "vector_store_files", "vector_store_batches", "vector_stores"):
        op.drop_table(table)
    op.drop_index("uq_files_tenant_id_id", table_name="files")
