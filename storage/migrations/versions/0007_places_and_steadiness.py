"""Add where a study's runs are, and since when a controller renews its lease without a gap."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("hpo_studies", sa.Column("runs", sa.Text))
    op.add_column("hpo_controllers", sa.Column("steady_since", sa.Double))
