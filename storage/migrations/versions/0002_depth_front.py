"""The depth front: what a trial's model is worth at several depths."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "hpo_depth_points",
        sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("depth", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("search", sa.String(16), primary_key=True),
        sa.Column("layers", sa.JSON, nullable=False),
        sa.Column("valid_ppl", sa.Double, nullable=False),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("seconds_per_token", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.trial_id"], ondelete="CASCADE"),
    )
