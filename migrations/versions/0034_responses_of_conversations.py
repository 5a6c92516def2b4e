"""The responses that will add to a conversation are found by an index.

Revision ID: 0034
Revises: 0033
"""

from migrations import online

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    online.add_index(
        "ix_responses_appends_to", "responses", ["tenant_id", "appends_to"], where="appends_to IS NOT NULL"
    )


def downgrade() -> None:
    online.drop_index("ix_responses_appends_to")
