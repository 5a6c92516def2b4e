"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None

# Rules (docs/migrations.md): indexes and constraints of tables that grow by headrace.migrations.online, before anything else;
# no rewrite and no UPDATE of every row; works with the release that is still running. Remove this comment.


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
