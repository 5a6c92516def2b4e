"""The placeholders that a response's input has already: those of the response before it."""

from collections.abc import Mapping
from typing import Any

from headrace.producer_api.reads.job_loader import vault_of
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.jobs.face_row import FaceRow


def placeholders_before(db: Database, tenant_id: str, response: FaceRow | None) -> Mapping[str, Any] | None:
    """Return the placeholders of the response before, whose texts the input has. Blocks."""
    if response is None or response.job_before is None:
        return None
    # It may be deleted: then its values are gone too.
    found = jobs.get_many(db, tenant_id, [response.job_before])
    return vault_of(found[0].payload) if found else None
