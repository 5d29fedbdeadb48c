"""What a project asks for as its environment, and what a submission gets."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns; what was handed in before runs in the environment of its profile."""
    for table, name in (("project", "environment"), ("submission", "environment"), ("submission", "env_key")):
        op.add_column(table, sa.Column(name, sa.String(), nullable=False, server_default=""))
