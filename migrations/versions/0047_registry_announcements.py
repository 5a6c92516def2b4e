"""The start and the end of a rollout, and a version that was rejected, are events of webhooks.

Triggers write the deliveries: an API process that starts a rollout may not read the endpoints of other tenants.

Revision ID: 0047
Revises: 0046
"""

import sqlalchemy as sa
from alembic import op

from migrations import online

revision = "0047"
down_revision = "0046"
branch_labels = None
depends_on = None

_SUBJECT = "ck_webhook_deliveries_one_subject"
_SUBJECTS_BEFORE = "num_nonnulls(job_id, batch_id, about_endpoint_id) = 1"
_SUBJECTS_NOW = "num_nonnulls(job_id, batch_id, about_endpoint_id, registry_id) = 1"

# ``*`` is all events of a tenant. These are events of the operator, so an endpoint must name them.
ANNOUNCE = """
CREATE FUNCTION headrace_announce_registry() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    event varchar := 'version.rejected';
    subject varchar;
BEGIN
    IF TG_TABLE_NAME = 'rollouts' THEN
        event := 'rollout.' || CASE TG_OP WHEN 'INSERT' THEN 'started' ELSE NEW.state END;
        subject := NEW.id;
    ELSE
        subject := NEW.model || '@' || NEW.version;
    END IF;
    INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, url, registry_id, type)
    SELECT 'evt_' || replace(gen_random_uuid()::text, '-', ''), tenant_id, id, url, subject, event
    FROM webhook_endpoints WHERE disabled_at IS NULL AND event = ANY (events);
    RETURN NULL;
END
$$
"""

TRIGGERS = (
    """CREATE TRIGGER headrace_rollout_started AFTER INSERT ON rollouts
    FOR EACH ROW EXECUTE FUNCTION headrace_announce_registry()""",
    """CREATE TRIGGER headrace_rollout_ended AFTER UPDATE OF state ON rollouts
    FOR EACH ROW WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL)
    EXECUTE FUNCTION headrace_announce_registry()""",
    """CREATE TRIGGER headrace_version_rejected AFTER UPDATE OF state ON model_versions
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state AND NEW.state = 'rejected')
    EXECUTE FUNCTION headrace_announce_registry()""",
)


def upgrade() -> None:
    online.add_constraint("webhook_deliveries", _SUBJECT, f"CHECK ({_SUBJECTS_NOW})")
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(ANNOUNCE.format(schema=schema))
    for trigger in TRIGGERS:
        op.execute(trigger)


def downgrade() -> None:
    for trigger, table in (
        ("headrace_version_rejected", "model_versions"),
        ("headrace_rollout_ended", "rollouts"),
        ("headrace_rollout_started", "rollouts"),
    ):
        op.execute(f"DROP TRIGGER {trigger} ON {table}")
    op.execute("DROP FUNCTION headrace_announce_registry()")
    op.execute("DELETE FROM webhook_deliveries WHERE registry_id IS NOT NULL")
    op.execute(f"ALTER TABLE webhook_deliveries DROP CONSTRAINT {_SUBJECT}")
    op.execute(f"ALTER TABLE webhook_deliveries ADD CONSTRAINT {_SUBJECT} CHECK ({_SUBJECTS_BEFORE})")
