"""What Alembic runs for each command: the transaction is begun by `bhive_mltf.gateway.store.schema`."""

from alembic import context

from bhive_mltf.gateway.store.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
