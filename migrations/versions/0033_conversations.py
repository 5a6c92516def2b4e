"""Conversations of the Responses API, and the responses that will add to them.

Revision ID: 0033
Revises: 0032
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.isolation import CHANGE, isolate

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_conversations_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversations")),
    )
    op.create_index("uq_conversations_tenant_id_id", "conversations", ["tenant_id", "id"], unique=True)
    op.create_index(op.f("ix_conversations_tenant_id_used_at"), "conversations", ["tenant_id", "used_at"])
    op.create_table(
        "conversation_items",
        sa.Column("conversation_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("response_id", sa.String(), nullable=True),
        sa.Column("num_bytes", sa.Integer(), nullable=False),
        sa.Column("item", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_conversation_items_tenant_id")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "conversation_id"],
            ["conversations.tenant_id", "conversations.id"],
            name=op.f("fk_conversation_items_tenant_id_conversation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("conversation_id", "id", name=op.f("pk_conversation_items")),
    )
    op.create_index(
        op.f("ix_conversation_items_tenant_id_conversation_id_position"),
        "conversation_items",
        ["tenant_id", "conversation_id", "position"],
    )
    op.create_index(
        "ix_conversation_items_response_id",
        "conversation_items",
        ["response_id"],
        postgresql_where=sa.text("response_id IS NOT NULL"),
    )
    isolate("conversations", api=CHANGE)
    isolate("conversation_items", api=CHANGE)
    op.add_column("responses", sa.Column("appends_to", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("responses", "appends_to")
    op.drop_table("conversation_items")
    op.drop_table("conversations")
