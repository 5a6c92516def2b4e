"""The audit log is append-only, and every tenant's rows are a hash chain.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


# JSON with sorted keys and no spaces. Numbers are integers that every JSON library reads as they are.
CANONICAL = """
CREATE FUNCTION headrace_canonical_json(value jsonb) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    CASE jsonb_typeof(value)
    WHEN 'object' THEN
        RETURN '{' || COALESCE((
            SELECT string_agg(to_json(key)::text || ':' || headrace_canonical_json(held), ',' ORDER BY key COLLATE "C")
            FROM jsonb_each(value) AS fields (key, held)
        ), '') || '}';
    WHEN 'array' THEN
        RETURN '[' || COALESCE((
            SELECT string_agg(headrace_canonical_json(held), ',' ORDER BY place)
            FROM jsonb_array_elements(value) WITH ORDINALITY AS items (held, place)
        ), '') || ']';
    WHEN 'number' THEN
        IF value::text !~ '^-?[0-9]{1,15}$' THEN
            RAISE EXCEPTION 'the audit log takes whole numbers of at most 15 digits: write others as text'
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        RETURN value::text;
    ELSE
        RETURN value::text;
    END CASE;
END
$$
"""

# The times of rows are to the microsecond.
HASH = """
CREATE FUNCTION headrace_audit_hash(entry audit_log) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN encode(sha256(convert_to(headrace_canonical_json(jsonb_build_object(
        'action', entry.action,
        'actor', entry.actor,
        'address', entry.address,
        'after_hash', entry.after_hash,
        'at', to_char(entry.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'before_hash', entry.before_hash,
        'detail', entry.detail,
        'id', entry.id,
        'prev_hash', entry.prev_hash,
        'request_id', entry.request_id,
        'resource', entry.resource,
        'seq', entry.seq,
        'tenant_id', entry.tenant_id,
        'version', entry.version
    )), 'UTF8')), 'hex');
END
$$
"""

CHAIN_WHAT_IS_THERE = """
DO $$
DECLARE
    entry audit_log;
    last audit_log;
BEGIN
    FOR entry IN SELECT * FROM audit_log ORDER BY tenant_id, id LOOP
        IF last.seq IS NULL OR last.tenant_id IS DISTINCT FROM entry.tenant_id THEN
            last.seq := 0;
            last.hash := repeat('0', 64);
        END IF;
        entry.seq := last.seq + 1;
        entry.prev_hash := last.hash;
        entry.hash := headrace_audit_hash(entry);
        UPDATE audit_log SET seq = entry.seq, prev_hash = entry.prev_hash, hash = entry.hash WHERE id = entry.id;
        last := entry;
    END LOOP;
END
$$
"""

# By the trigger, not by the one who inserts: whoever inserts is chained, an older release too, and cannot choose its
# place or its time. The lock is held to the end of the transaction, so a chain's order is that of its commits, and
# nothing is missing in it that is not being committed; chains do not wait for each other. As the owner of the table,
# who sees every row of it.
CHAIN = """
CREATE FUNCTION headrace_audit_chain() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
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
    -- A number of its own again, after the wait: within a chain the numbers rise as the places do.
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

CHAINED = """
CREATE TRIGGER headrace_audit_chained BEFORE INSERT ON audit_log
FOR EACH ROW EXECUTE FUNCTION headrace_audit_chain()
"""

REFUSE = """
CREATE FUNCTION headrace_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$
"""

APPEND_ONLY = """
CREATE TRIGGER headrace_audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION headrace_audit_refuse()
"""

# In a session of replication too, which is a superuser's way around triggers.
ALWAYS = "ALTER TABLE audit_log ENABLE ALWAYS TRIGGER headrace_audit_append_only"


def upgrade() -> None:
    op.add_column("audit_log", sa.Column("seq", sa.BigInteger(), nullable=True))
    op.add_column("audit_log", sa.Column("version", sa.SmallInteger(), server_default=sa.text("1"), nullable=False))
    op.add_column("audit_log", sa.Column("prev_hash", sa.String(), nullable=True))
    op.add_column("audit_log", sa.Column("hash", sa.String(), nullable=True))
    op.execute(CANONICAL)
    op.execute(HASH)
    op.execute(CHAIN_WHAT_IS_THERE)
    for name in ("seq", "prev_hash", "hash"):
        op.alter_column("audit_log", name, nullable=False)
    op.create_unique_constraint(
        op.f("uq_audit_log_tenant_id_seq"), "audit_log", ["tenant_id", "seq"], postgresql_nulls_not_distinct=True
    )
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(CHAIN.format(schema=schema))
    op.execute(CHAINED)
    op.execute(REFUSE)
    op.execute(APPEND_ONLY)
    op.execute(ALWAYS)


def downgrade() -> None:
    op.execute("DROP TRIGGER headrace_audit_append_only ON audit_log")
    op.execute("DROP TRIGGER headrace_audit_chained ON audit_log")
    for function in ("headrace_audit_refuse", "headrace_audit_chain", "headrace_audit_hash", "headrace_canonical_json"):
        op.execute(f"DROP FUNCTION {function}")
    op.drop_constraint(op.f("uq_audit_log_tenant_id_seq"), "audit_log", type_="unique")
    for name in ("hash", "prev_hash", "version", "seq"):
        op.drop_column("audit_log", name)
