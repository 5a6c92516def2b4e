"""Alembic's entry point: runs the revisions on the connection of ``migrations.schema``. It opens none itself."""

from alembic import context

from headrace.store.schema.all_tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    compare_server_default=True,
    transaction_per_migration=True,
)
context.run_migrations()
