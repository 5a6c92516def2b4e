"""The rows of responses, which ``store.jobs.acceptance`` writes: read and deleted.

A response that was deleted, or was accepted with ``store: false``, is not found. Every statement has a condition on the
tenant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson
from sqlalchemy import text

from headrace.features.responses.erasure import erase_unneeded_responses
from headrace.features.responses.new_response import NewResponse
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.jobs.erasure import erase
from headrace.store.jobs.responses import JOB_PREFIX, PREFIX, response_id
from headrace.store.seal import SealContext

# Read a visible response.
_GET = text("""
SELECT job_id, previous_id, is_stored, is_background, request FROM responses
WHERE tenant_id = :tenant_id AND job_id = :job_id AND deleted_at IS NULL AND hidden_at IS NULL
    AND (is_stored OR :unstored)
""")

# Read the items of a response and of those before it, oldest first. Earlier responses may be deleted or hidden: the
# later one still needs their items.
_CHAIN = text("""
WITH RECURSIVE chain AS (
    SELECT job_id, previous_id, goes_on, input, 1 AS turn FROM responses
    WHERE tenant_id = :tenant_id AND job_id = :job_id AND deleted_at IS NULL AND hidden_at IS NULL AND is_stored
    UNION ALL
    SELECT before.job_id, before.previous_id, before.goes_on, before.input, turn + 1
    FROM chain JOIN responses AS before
        ON before.tenant_id = :tenant_id AND before.job_id = 'job_' || substr(chain.previous_id, 6)
    WHERE chain.goes_on AND turn <= :most
)
SELECT job_id, goes_on, input FROM chain ORDER BY turn DESC
""")

# Find out whether the tenant deleted a response.
_WAS_DELETED = text("""
SELECT FROM responses WHERE tenant_id = :tenant_id AND job_id = :job_id AND deleted_at IS NOT NULL
""")


# Marks a response as deleted, and its job to be erased at its end.
_DELETE = text("""
WITH gone AS (
    UPDATE responses SET deleted_at = now(), request = '{}'
    WHERE tenant_id = :tenant_id AND job_id = :job_id AND deleted_at IS NULL AND hidden_at IS NULL AND is_stored
    RETURNING job_id
)
UPDATE jobs SET purge_when_ended = true FROM gone WHERE jobs.id = gone.job_id
RETURNING jobs.id
""")


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """The row without its input. No column has the last two.

    ``found``: the passages of its search, if they are shown. ``turns``: what came before the text of the answer.
    """

    job_id: str
    previous_id: str | None
    is_stored: bool
    is_background: bool
    request: dict[str, Any]
    found: Sequence[Mapping[str, Any]] | None = None
    turns: Sequence[Any] = ()

    @classmethod
    def of(cls, job_id: str, new: NewResponse) -> Self:
        """Return the row that was stored for ``new``."""
        return cls(job_id, new.previous_id, new.is_stored, new.is_background, new.request)


def job_id_of(response_id: str) -> str:
    """Return the id of the response's job; raise NotFound if the format is wrong."""
    if not response_id.startswith(PREFIX):
        raise not_found(response_id)
    return JOB_PREFIX + response_id.removeprefix(PREFIX)


def get(db: Database, tenant_id: str, job_id: str, *, unstored: bool = False) -> StoredResponse:
    """Return the response of a job; raise NotFound if the tenant has none, or if it was deleted or is hidden.

    ``unstored``: also return a response with ``store: false``, for the request that made it.
    """
    values = {"tenant_id": tenant_id, "job_id": job_id, "unstored": unstored}
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_GET, values).mappings().one_or_none()
    if row is None:
        raise not_found(response_id(job_id))
    request = db.seal.open(row["request"], SealContext(tenant_id, "responses", "request", job_id))
    return StoredResponse(**{**row, "request": request})


MAX_TURNS = 256
"""The most responses of one conversation."""

MAX_BYTES = 4 << 20
"""The most bytes of all items of a conversation, as JSON."""


@dataclass(frozen=True, slots=True)
class ResponseChain:
    """The items that an answer was generated from, oldest first, and the number of their responses."""

    items: list[dict[str, Any]]
    num_turns: int

    def check_room(self) -> None:
        """Raise InvalidRequest if the conversation is too long for one more response."""
        num_bytes = len(orjson.dumps(self.items))
        if self.num_turns < MAX_TURNS and num_bytes <= MAX_BYTES:
            return
        raise InvalidRequest(
            f"the conversation has {self.num_turns} responses with {num_bytes} bytes, and {MAX_TURNS} with {MAX_BYTES} "
            "are the most: begin a new one with what matters of it",
            code="conversation_too_long",
            param="previous_response_id",
        )


def get_chain(db: Database, tenant_id: str, job_id: str) -> ResponseChain:
    """Return the items of the answer; raise NotFound as ``get`` does, and if a part of them was purged."""
    values = {"tenant_id": tenant_id, "job_id": job_id, "most": MAX_TURNS}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_CHAIN, values).all()
    if not rows:
        raise not_found(response_id(job_id))
    if rows[0].goes_on:
        raise NotFound(f"the beginning of the conversation of {response_id(job_id)} is no longer kept")
    items: list[dict[str, Any]] = []
    for row in rows:
        opened = db.seal.open(row.input, SealContext(tenant_id, "responses", "input", row.job_id))
        items += opened["items"] if isinstance(opened, dict) else opened
    return ResponseChain(items, len(rows))


def get_input(db: Database, tenant_id: str, job_id: str) -> list[dict[str, Any]]:
    """Return the items of ``get_chain``."""
    return get_chain(db, tenant_id, job_id).items


def was_deleted(db: Database, tenant_id: str, job_id: str) -> bool:
    """True if the tenant deleted the job's response; False if it is not found for another reason."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return connection.execute(_WAS_DELETED, {"tenant_id": tenant_id, "job_id": job_id}).first() is not None


def delete(db: Database, tenant_id: str, job_id: str, *, actor: str) -> None:
    """Delete a response and erase its job's contents, now or when the job has ended.

    Its items are kept, hidden, while later responses need them. Raises NotFound if the tenant has no such response.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        gone = connection.execute(_DELETE, {"tenant_id": tenant_id, "job_id": job_id}).scalar_one_or_none()
        if gone is None:
            raise not_found(response_id(job_id))
        erase_unneeded_responses(connection, [job_id])
        erase(connection, [job_id])
        record(connection, tenant_id, actor, "response.deleted", response_id(job_id), {})


def not_found(response_id: str) -> NotFound:
    """Return the error of a response that the tenant does not have, or does not have any more."""
    return NotFound(f"no response {response_id[:80]}")
