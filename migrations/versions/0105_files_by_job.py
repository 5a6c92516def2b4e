"""Find the files that a job made.

Revision ID: 0105
Revises: 0104
"""

from headrace.migrations import online

revision = "0105"
down_revision = "0104"
branch_labels = None
depends_on = None


def upgrade() -> None:
    online.add_index(
        "uq_files_result_of_position",
        "files",
        ["result_of", "position"],
        unique=True,
        where="result_of IS NOT NULL",
    )
