"""Master keys are known by a check value, audit chains by their ends, and what is due by who is to take it.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

from migrations.isolation import READ, share

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# As revision 0011 has it, but a row is chained to where the chain ended, also if that was cut off or changed since.
CHAIN = """
CREATE OR REPLACE FUNCTION headrace_audit_chain() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    last audit_heads;
    kept audit_heads;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('headrace.audit_log.' || COALESCE(NEW.tenant_id, ''), 0));
    last.chain := COALESCE(NEW.tenant_id, 'system');
    IF NEW.tenant_id IS NULL THEN
        SELECT seq, hash INTO last.seq, last.hash FROM audit_log WHERE tenant_id IS NULL ORDER BY seq DESC LIMIT 1;
    ELSE
        SELECT seq, hash INTO last.seq, last.hash FROM audit_log WHERE tenant_id = NEW.tenant_id
        ORDER BY seq DESC LIMIT 1;
    END IF;
    SELECT * INTO kept FROM audit_heads WHERE chain = last.chain;
    IF kept.seq >= COALESCE(last.seq, 0) THEN
        last := kept;
    END IF;
    -- A number of its own again, after the wait: within a chain the numbers rise as the places do.
    NEW.id := nextval(pg_get_serial_sequence('audit_log', 'id'));
    NEW.at := clock_timestamp();
    NEW.version := 1;
    NEW.seq := COALESCE(last.seq, 0) + 1;
    NEW.prev_hash := COALESCE(last.hash, repeat('0', 64));
    NEW.hash := headrace_audit_hash(NEW);
    INSERT INTO audit_heads AS head (chain, seq, hash, at) VALUES (last.chain, NEW.seq, NEW.hash, NEW.at)
    ON CONFLICT (chain) DO UPDATE SET seq = EXCLUDED.seq, hash = EXCLUDED.hash, at = EXCLUDED.at;
    RETURN NEW;
END
$$
"""

CHAIN_BEFORE = """
CREATE OR REPLACE FUNCTION headrace_audit_chain() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    last audit_log;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('headrace.audit_log.' || COALESCE(NEW.tenant_id, ''), 0));
    IF NEW.tenant_id IS NULL THEN
        SELECT * INTO last FROM audit_log WHERE tenant_id IS NULL ORDER BY seq DESC LIMIT 1;
    ELSE
        SELECT * INTO last FROM audit_log WHERE tenant_id = NEW.tenant_id ORDER BY seq DESC LIMIT 1;
    END IF;
    NEW.id := nextval(pg_get_serial_sequence('audit_log', 'id'));
    NEW.at := clock_timestamp();
    NEW.version := 1;
    NEW.seq := COALESCE(last.seq, 0) + 1;
    NEW.prev_hash := COALESCE(last.hash, repeat('0', 64));
    NEW.hash := headrace_audit_hash(NEW);
    RETURN NEW;
END
$$
"""

ENDS = """
INSERT INTO audit_heads (chain, seq, hash, at)
SELECT DISTINCT ON (tenant_id) COALESCE(tenant_id, 'system'), seq, hash, at FROM audit_log ORDER BY tenant_id, seq DESC
"""


def _schema() -> str:
    return str(op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one())


def upgrade() -> None:
    op.create_table(
        "encryption_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("check_value", sa.String(), nullable=False),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_encryption_keys")),
    )
    share("encryption_keys", api=f"{READ}, INSERT", worker=f"{READ}, INSERT")
    op.create_table(
        "audit_heads",
        sa.Column("chain", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_audit_heads")),
    )
    share("audit_heads", api="", worker="", operator=READ)
    # Nobody writes a row between the two.
    op.execute("LOCK TABLE audit_log IN SHARE ROW EXCLUSIVE MODE")
    op.execute(ENDS)
    op.execute(CHAIN.format(schema=_schema()))
    op.create_index(
        "ix_webhook_deliveries_receiver",
        "webhook_deliveries",
        [sa.text("(tenant_id || ' ' || COALESCE(endpoint_id, lower(split_part(url, '/', 3))))"), "next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )


def downgrade() -> None:
    op.drop_index("ix_webhook_deliveries_receiver", table_name="webhook_deliveries")
    op.execute(CHAIN_BEFORE.format(schema=_schema()))
    op.drop_table("audit_heads")
    op.drop_table("encryption_keys")
