"""Owners, projects, submissions, events, and the worker that leads."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def _number(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.Integer(), nullable=False) for name in names]


def _time(*names: str, nullable: bool = False) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Double(), nullable=nullable) for name in names]


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "leader",
        *_text("name"),
        *_number("epoch"),
        *_text("holder"),
        *_time("heartbeat"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "owner",
        *_text("id", "iss", "sub", "display", "mlflow_name"),
        *_time("blocked_at", nullable=True),
        *_time("created_at"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("iss", "sub"),
        sa.UniqueConstraint("mlflow_name"),
    )
    op.create_table(
        "project",
        *_text("digest"),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        *_number("files"),
        *_text("name"),
        sa.Column("entry_points", sa.JSON(), nullable=False),
        *_time("created_at"),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "project_ref",
        *_text("owner", "digest"),
        *_time("created_at"),
        sa.ForeignKeyConstraint(["owner"], ["owner.id"]),
        sa.ForeignKeyConstraint(["digest"], ["project.digest"]),
        sa.PrimaryKeyConstraint("owner", "digest"),
    )
    op.create_table(
        "submission",
        *_text("id", "owner", "idem_key", "request_hash", "state", "reason_code", "reason"),
        *_time("cancel_at", nullable=True),
        *_text("cancel_by", "digest", "name", "label", "entry_point"),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("argv", sa.JSON(), nullable=False),
        *_text("profile"),
        *_number("nodes", "gpus"),
        sa.Column("hours", sa.Double(), nullable=False),
        *_text("experiment", "experiment_id", "run_id", "run_status_sent", "job_id", "job_state"),
        *_number("restarts"),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        *_text("outcome"),
        *_time("created_at"),
        *_time("submitted_at", "started_at", "ended_at", nullable=True),
        *_time("updated_at"),
        sa.ForeignKeyConstraint(["owner"], ["owner.id"]),
        sa.ForeignKeyConstraint(["digest"], ["project.digest"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("owner", "idem_key"),
    )
    op.create_index("submission_by_owner", "submission", ["owner", "created_at", "id"])
    op.create_index("submission_by_state", "submission", ["state"])
    op.create_table(
        "event",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        *_text("submission", "before", "after", "actor", "detail"),
        *_time("time"),
        sa.ForeignKeyConstraint(["submission"], ["submission.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("event_by_submission", "event", ["submission", "id"])
