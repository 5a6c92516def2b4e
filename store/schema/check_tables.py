"""The table of the newest hash of each audit chain."""

from sqlalchemy import BigInteger, Column, DateTime, String, Table

from headrace.store.schema.tables import metadata

# The trigger that chains the rows of the audit log writes it: see ``features.audit.hash_chain``.
audit_heads = Table(
    "audit_heads",
    metadata,
    Column("chain", String, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", String, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
)
