"""Results of a trial's trainings, where it has several."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "hpo_results",
        sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("repeat", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempt_id", sa.Integer, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.trial_id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["attempt_id"], ["hpo_attempts.id"], ondelete="CASCADE"),
    )
