"""The table of encryption: a check value of each master key."""

from sqlalchemy import Column, String, Table

from headrace.store.schema.tables import metadata, timestamp

encryption_keys = Table(
    "encryption_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("check_value", String, nullable=False),
    timestamp("first_seen_at", required=True),
)
