"""alembic's entry point: runs our migrations on the connection that `storage.database` opened."""

from alembic import context

from storage.database import VERSION_TABLE
from storage.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
