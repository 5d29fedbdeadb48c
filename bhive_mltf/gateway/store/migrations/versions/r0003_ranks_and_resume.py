"""Ranks per node of a submission, and whether it goes on from its checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; what was handed in before ran once per node, and once."""
    op.add_column("submission", sa.Column("ranks_per_node", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("submission", sa.Column("resume", sa.Boolean(), nullable=False, server_default=sa.false()))
