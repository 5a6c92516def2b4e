"""The placeholders that a response's input has already: those of the response or the conversation that it continues."""

from headrace.policy.placeholders import PlaceholderMap
from headrace.producer_api.reads.job_loader import vault_of
from headrace.store.db.database import Database
from headrace.store.jobs import conversations, jobs
from headrace.store.jobs.responses import NewResponse, job_id_of


def vault_before(db: Database, tenant_id: str, response: NewResponse | None) -> PlaceholderMap | None:
    """Return the placeholders of the previous response or of the conversation, whose texts the input has. Blocks."""
    if response is None:
        return None
    if response.appends_to is not None:
        last_id = conversations.read_items(db, tenant_id, response.appends_to).last_response_id
        # The newest response may be deleted: then its values are gone too.
        found = [] if last_id is None else jobs.get_many(db, tenant_id, [job_id_of(last_id)])
        return vault_of(found[0].payload) if found else None
    if response.previous_id is None:
        return None
    return vault_of(jobs.get(db, tenant_id, job_id_of(response.previous_id)).payload)
