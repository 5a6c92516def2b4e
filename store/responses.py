"""What a job that came as a response has beside its row: input items, what was asked, and whether it may be seen.

The row is written by ``store.accepting`` in the statement that accepts the job, so neither is without the other. A
response that was not to be stored, or was deleted, is not found. Every statement carries the tenant.
"""

from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import text

from store.db import Database
from store.encryption import Place
from store.errors import NotFound

PREFIX = "resp_"
_JOB_PREFIX = "job_"

EVENT_TYPES = frozenset(f"response.{end}" for end in ("completed", "incomplete", "failed", "cancelled"))
"""What webhooks say of a response's end, beside the ``job.*`` of its job."""

# Of the columns of ``ended`` in ``store.terminal``.
EVENT_TYPE = """'response.' || CASE
    WHEN ended.state = 'succeeded' AND ended.finish_reason = 'length' THEN 'incomplete'
    WHEN ended.state = 'succeeded' THEN 'completed' WHEN ended.state = 'cancelled' THEN 'cancelled' ELSE 'failed' END"""


@dataclass(frozen=True, slots=True)
class NewResponse:
    """What to store beside a new job. ``input`` are items as they are shown; ``request`` is what was asked."""

    previous_id: str | None
    is_stored: bool
    is_background: bool
    input: list[dict[str, Any]]
    request: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """The row without its input."""

    job_id: str
    previous_id: str | None
    is_stored: bool
    is_background: bool
    request: dict[str, Any]

    @classmethod
    def of(cls, job_id: str, new: NewResponse) -> Self:
        """Return the row of a response that was stored just now."""
        return cls(job_id, new.previous_id, new.is_stored, new.is_background, new.request)


def response_id(job_id: str) -> str:
    """Return the id under which the job is known as a response."""
    return PREFIX + job_id.removeprefix(_JOB_PREFIX)


def job_id_of(response_id: str) -> str:
    """Return the id of the response's job; raise NotFound for what cannot be a response's id."""
    if not response_id.startswith(PREFIX):
        raise not_found(response_id)
    return _JOB_PREFIX + response_id.removeprefix(PREFIX)


_GET = text("""
SELECT job_id, previous_id, is_stored, is_background, request FROM responses
WHERE tenant_id = :tenant_id AND job_id = :job_id AND deleted_at IS NULL AND (is_stored OR :unstored)
""")


def get(db: Database, tenant_id: str, job_id: str, *, unstored: bool = False) -> StoredResponse:
    """Return the response of a job; raise NotFound if this tenant has none, or may not see it any more.

    ``unstored``: also one that was not to be stored, for the call that made it.
    """
    values = {"tenant_id": tenant_id, "job_id": job_id, "unstored": unstored}
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_GET, values).mappings().one_or_none()
    if row is None:
        raise not_found(response_id(job_id))
    request = db.vault.open(row["request"], Place(tenant_id, "responses", "request", job_id))
    return StoredResponse(**{**row, "request": request})


_INPUT = text("""
SELECT input FROM responses
WHERE tenant_id = :tenant_id AND job_id = :job_id AND deleted_at IS NULL AND is_stored
""")


def get_input(db: Database, tenant_id: str, job_id: str) -> list[dict[str, Any]]:
    """Return the items that the answer was generated from, oldest first; raise NotFound as ``get`` does."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        found = connection.execute(_INPUT, {"tenant_id": tenant_id, "job_id": job_id}).scalar_one_or_none()
    if found is None:
        raise not_found(response_id(job_id))
    opened: list[dict[str, Any]] = db.vault.open(found, Place(tenant_id, "responses", "input", job_id))
    return opened


_WAS_DELETED = text("""
SELECT FROM responses WHERE tenant_id = :tenant_id AND job_id = :job_id AND deleted_at IS NOT NULL
""")


def was_deleted(db: Database, tenant_id: str, job_id: str) -> bool:
    """True if the tenant deleted the job's response, which is then not found; False if its time is over."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return connection.execute(_WAS_DELETED, {"tenant_id": tenant_id, "job_id": job_id}).first() is not None


def not_found(response_id: str) -> NotFound:
    """Return the error of a response that this tenant has not, or not any more."""
    return NotFound(f"no response {response_id[:80]}")
