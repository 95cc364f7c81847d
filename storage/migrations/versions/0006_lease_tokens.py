"""A token of each lease: SQLite gives the ids of deleted rows out again."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("hpo_controllers", sa.Column("token", sa.String(32)))
