"""Prompts are found by their names, which are unique in a tenant, and by aliases of their versions.

Revision ID: 0051
Revises: 0050
"""

import sqlalchemy as sa
from alembic import op

from migrations.isolation import CHANGE, isolate_by_parent
from store.db.roles import API

revision = "0051"
down_revision = "0050"
branch_labels = None
depends_on = None

# A name was only shown. Of prompts with one name the oldest keeps it, and the others have their id in theirs. A tenant
# has at most 1,000 prompts.
DISTINCT = """
UPDATE prompts SET name = name || '-' || id WHERE name <> '' AND EXISTS (
    SELECT FROM prompts AS older
    WHERE older.tenant_id = prompts.tenant_id AND older.name = prompts.name AND older.id < prompts.id)
"""


def upgrade() -> None:
    op.execute(DISTINCT)
    op.create_index(
        "uq_prompts_tenant_id_name",
        "prompts",
        ["tenant_id", "name"],
        unique=True,
        postgresql_where=sa.text("name <> ''"),
    )
    op.create_table(
        "prompt_aliases",
        sa.Column("prompt_id", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("prompt_id", "alias", name=op.f("pk_prompt_aliases")),
        sa.ForeignKeyConstraint(
            ["prompt_id", "version"],
            ["prompt_versions.prompt_id", "prompt_versions.version"],
            name=op.f("fk_prompt_aliases_prompt_id_version"),
            ondelete="CASCADE",
        ),
    )
    isolate_by_parent("prompt_aliases", "prompts", key="prompt_id", api=CHANGE)
    op.execute(f"GRANT DELETE ON prompts TO {API}")


def downgrade() -> None:
    op.execute(f"REVOKE DELETE ON prompts FROM {API}")
    op.drop_table("prompt_aliases")
    op.drop_index("uq_prompts_tenant_id_name", table_name="prompts")
