"""What is checked against: of each master key what tells it from another of its id, and where each audit chain ends."""

from sqlalchemy import BigInteger, Column, DateTime, String, Table, func

from store.schema.tables import metadata


def _now(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


encryption_keys = Table(
    "encryption_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("check_value", String, nullable=False),
    _now("first_seen_at"),
)

# Written by the trigger that chains the rows of the audit log: see ``store.audit.hash_chain``.
audit_heads = Table(
    "audit_heads",
    metadata,
    Column("chain", String, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", String, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
)
