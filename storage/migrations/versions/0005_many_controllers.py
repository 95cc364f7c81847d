"""Several controllers of one study: trials that wait to be claimed, and whose a teacher is."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "hpo_waiting",
        sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("due_at", sa.Double, nullable=False),
        sa.Column("parked", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.trial_id"], ondelete="CASCADE"),
    )
    op.execute(
        "ALTER TABLE hpo_teachers ADD COLUMN controller_id INTEGER "
        "REFERENCES hpo_controllers (id) ON DELETE SET NULL"
    )
    op.create_index("ix_hpo_metrics_at", "hpo_metrics", ["at"])
    op.create_index(
        "ix_hpo_attempts_open",
        "hpo_attempts",
        ["controller_id"],
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    # Until now what waited was worked out: our RUNNING trials without an open attempt.
    op.execute("""
        INSERT INTO hpo_waiting (trial_id, due_at, parked)
        SELECT t.trial_id, 0, EXISTS (
            SELECT 1 FROM hpo_attempts a
            WHERE a.trial_id = t.trial_id AND a.reason = 'parked' AND a.number = (
                SELECT max(number) FROM hpo_attempts WHERE trial_id = t.trial_id
            )
        )
        FROM trials t JOIN hpo_studies s ON s.study_id = t.study_id
        WHERE t.state = 'RUNNING' AND EXISTS (
            SELECT 1 FROM trial_user_attributes u
            WHERE u.trial_id = t.trial_id AND u.key = 'run_dir'
        ) AND NOT EXISTS (
            SELECT 1 FROM hpo_attempts a WHERE a.trial_id = t.trial_id AND a.ended_at IS NULL
        )
    """)
