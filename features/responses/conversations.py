"""Conversations of the Responses API: items that responses continue from, and to which they add what is new.

A response that names a conversation belongs to it from the moment at which its job succeeds. No statement of a worker
says so: the response has the conversation in ``appends_to``, and ``settle`` copies its items, once, before anything
reads the conversation. Under the lock of the conversation it copies those that have ended, in the order of their ends,
and empties ``appends_to`` in the same transaction. A copy outlives its response: only an erasure on request deletes
both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, RowMapping, text

from headrace.features.responses.stored_responses import MAX_BYTES, StoredResponse
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.ids import new_id
from headrace.store.jobs.job_rows import Job, job_of, select_jobs
from headrace.store.jobs.responses import response_id
from headrace.store.json_text import dump_json
from headrace.store.schema import tables
from headrace.store.schema.job_states import JobState
from headrace.store.seal import Seal, SealContext

MOST_ITEMS = 1024
"""The most items of one conversation to which more may be added."""

Item = dict[str, Any]
OutputOf = Callable[[Job, StoredResponse], list[Item]]
"""Returns the items of a response's answer."""

_COLUMNS = "id, tenant_id, metadata, created_at"

# Adds a conversation.
_INSERT = text(f"""
INSERT INTO conversations (id, tenant_id, metadata) VALUES (:id, :tenant_id, CAST(:metadata AS jsonb))
RETURNING {_COLUMNS}
""")

_GET = text(f"SELECT {_COLUMNS} FROM conversations WHERE tenant_id = :tenant_id AND id = :id")

# Locks a conversation, and notes that it is in use. Only after ``settle``: a response that is not copied must not be
# erased before its conversation.
_USE = text("UPDATE conversations SET used_at = now() WHERE tenant_id = :tenant_id AND id = :id RETURNING id")

_SET_METADATA = text(f"""
UPDATE conversations SET metadata = CAST(:metadata AS jsonb)
WHERE tenant_id = :tenant_id AND id = :id RETURNING {_COLUMNS}
""")

_DELETE = text("DELETE FROM conversations WHERE tenant_id = :tenant_id AND id = :id RETURNING id")

# Adds items in order. An item that the conversation has is not added again.
_ADD = text("""
INSERT INTO conversation_items (tenant_id, conversation_id, id, response_id, num_bytes, item)
SELECT :tenant_id, :id, added.id, added.response_id, added.num_bytes, added.item
FROM json_to_recordset(CAST(:rows AS json))
    AS added(place int, id text, response_id text, num_bytes int, item jsonb)
ORDER BY place
ON CONFLICT (conversation_id, id) DO NOTHING
""")

_SIZE = text("""
SELECT count(*) AS num_items, CAST(COALESCE(sum(num_bytes), 0) AS bigint) AS num_bytes FROM conversation_items
WHERE tenant_id = :tenant_id AND conversation_id = :id
""")

_ITEMS = """
SELECT id, item, response_id FROM conversation_items
WHERE tenant_id = :tenant_id AND conversation_id = :id
    AND (CAST(:after AS bigint) IS NULL OR position {past} :after)
ORDER BY position {order} LIMIT :limit
"""
_OLDEST_FIRST = text(_ITEMS.format(past=">", order="ASC"))
_NEWEST_FIRST = text(_ITEMS.format(past="<", order="DESC"))

_ITEM = text("""
SELECT id, item, position FROM conversation_items
WHERE tenant_id = :tenant_id AND conversation_id = :id AND id = :item_id
""")

_DELETE_ITEM = text("""
DELETE FROM conversation_items WHERE tenant_id = :tenant_id AND conversation_id = :id AND id = :item_id RETURNING id
""")

# Responses that have ended and are not copied, in the order of their ends.
_ENDED = """
SELECT responses.job_id, previous_id, is_stored, is_background, request, input,
    deleted_at IS NULL AND hidden_at IS NULL AS is_there
FROM responses JOIN jobs ON jobs.tenant_id = responses.tenant_id AND jobs.id = responses.job_id
WHERE responses.tenant_id = :tenant_id AND appends_to = :id AND jobs.completed_at IS NOT NULL
ORDER BY jobs.completed_at, jobs.id
"""
_IS_DUE = text(f"SELECT EXISTS ({_ENDED})")
# Locked, so that a deletion of the response waits, and then deletes the copies too.
_TAKE = text(f"{_ENDED} FOR NO KEY UPDATE OF responses")

_TAKEN = text("""
UPDATE responses SET appends_to = NULL WHERE tenant_id = :tenant_id AND job_id = ANY(CAST(:job_ids AS text[]))
""")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation without its items."""

    id: str
    tenant_id: str
    metadata: dict[str, str]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ConversationItems:
    """All items of a conversation, oldest first, and the id of the newest response among them."""

    items: list[Item]
    last_response_id: str | None

    def check_room(self) -> None:
        """Raise InvalidRequest if the conversation is too long for one more response."""
        _check_room(len(self.items), len(orjson.dumps(self.items)), "conversation")


def create(db: Database, tenant_id: str, *, metadata: Mapping[str, str], items: Sequence[Item] = ()) -> Conversation:
    """Store a conversation with its first items."""
    conversation_id = new_id("conv")
    values = _sealed_metadata(db.seal, tenant_id, conversation_id, metadata)
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_INSERT, values).mappings().one()
        _add(connection, db.seal, tenant_id, conversation_id, items, None)
    return _conversation(row, db.seal)


def get(db: Database, tenant_id: str, conversation_id: str) -> Conversation:
    """Return the conversation. Raises NotFound."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_GET, {"tenant_id": tenant_id, "id": conversation_id}).mappings().one_or_none()
    if row is None:
        raise _not_found(conversation_id)
    return _conversation(row, db.seal)


def set_metadata(db: Database, tenant_id: str, conversation_id: str, metadata: Mapping[str, str]) -> Conversation:
    """Replace the metadata. Raises NotFound."""
    values = _sealed_metadata(db.seal, tenant_id, conversation_id, metadata)
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_SET_METADATA, values).mappings().one_or_none()
    if row is None:
        raise _not_found(conversation_id)
    return _conversation(row, db.seal)


def delete(db: Database, tenant_id: str, conversation_id: str, *, actor: str) -> None:
    """Delete the conversation and its items; the responses stay. Raises NotFound."""
    with db.begin(tenant_id=tenant_id) as connection:
        if connection.execute(_DELETE, {"tenant_id": tenant_id, "id": conversation_id}).first() is None:
            raise _not_found(conversation_id)
        record(connection, tenant_id, actor, "conversation.deleted", conversation_id, {})


def add_items(db: Database, tenant_id: str, conversation_id: str, items: Sequence[Item]) -> None:
    """Add items at the end. Raises NotFound, and InvalidRequest if the conversation is full."""
    with db.begin(tenant_id=tenant_id) as connection:
        _use(connection, tenant_id, conversation_id)
        size = connection.execute(_SIZE, {"tenant_id": tenant_id, "id": conversation_id}).one()
        num_bytes = sum(len(orjson.dumps(item)) for item in items)
        _check_room(size.num_items + len(items) - 1, size.num_bytes + num_bytes, "items")
        _add(connection, db.seal, tenant_id, conversation_id, items, None)


def settle(db: Database, tenant_id: str, conversation_id: str, output_of: OutputOf) -> None:
    """Copy the responses that have ended into the conversation. Call it before anything that reads the items."""
    values = {"tenant_id": tenant_id, "id": conversation_id}
    with db.autocommit(tenant_id=tenant_id) as connection:
        if not connection.execute(_IS_DUE, values).scalar_one():
            return
    with db.begin(tenant_id=tenant_id) as connection:
        _use(connection, tenant_id, conversation_id)
        rows = connection.execute(_TAKE, values).mappings().all()
        for row in rows:
            items = _items_of(connection, db.seal, tenant_id, row, output_of)
            _add(connection, db.seal, tenant_id, conversation_id, items, response_id(row["job_id"]))
        connection.execute(_TAKEN, {"tenant_id": tenant_id, "job_ids": [row["job_id"] for row in rows]})


def list_items(
    db: Database, tenant_id: str, conversation_id: str, *, limit: int, after: str | None, descending: bool
) -> list[Item]:
    """Return at most ``limit`` items, after the item ``after``. Raises NotFound; InvalidRequest for an unknown item."""
    values = {"tenant_id": tenant_id, "id": conversation_id, "limit": limit, "after": None}
    with db.autocommit(tenant_id=tenant_id) as connection:
        _check_there(connection, tenant_id, conversation_id)
        if after is not None:
            row = connection.execute(_ITEM, values | {"item_id": after}).one_or_none()
            if row is None:
                raise InvalidRequest(f"{after[:80]!r} is not an item of this conversation", param="after")
            values["after"] = row.position
        rows = connection.execute(_NEWEST_FIRST if descending else _OLDEST_FIRST, values).mappings()
        return [_item(row, db.seal, tenant_id, conversation_id) for row in rows]


def read_items(db: Database, tenant_id: str, conversation_id: str) -> ConversationItems:
    """Return all items for a new response, which keeps the conversation in use. Raises NotFound."""
    values = {"tenant_id": tenant_id, "id": conversation_id, "limit": None, "after": None}
    with db.begin(tenant_id=tenant_id) as connection:
        _use(connection, tenant_id, conversation_id)
        rows = connection.execute(_OLDEST_FIRST, values).mappings().all()
    items = [_item(row, db.seal, tenant_id, conversation_id) for row in rows]
    made = [row["response_id"] for row in rows if row["response_id"] is not None]
    return ConversationItems(items, made[-1] if made else None)


def get_item(db: Database, tenant_id: str, conversation_id: str, item_id: str) -> Item:
    """Return an item. Raises NotFound."""
    values = {"tenant_id": tenant_id, "id": conversation_id, "item_id": item_id}
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_ITEM, values).mappings().one_or_none()
    if row is None:
        raise _no_item(conversation_id, item_id)
    return _item(row, db.seal, tenant_id, conversation_id)


def delete_item(db: Database, tenant_id: str, conversation_id: str, item_id: str) -> None:
    """Delete an item from the conversation; a response that it came from keeps it. Raises NotFound."""
    values = {"tenant_id": tenant_id, "id": conversation_id, "item_id": item_id}
    with db.begin(tenant_id=tenant_id) as connection:
        if connection.execute(_DELETE_ITEM, values).first() is None:
            raise _no_item(conversation_id, item_id)


def _items_of(connection: Connection, seal: Seal, tenant_id: str, row: RowMapping, output_of: OutputOf) -> list[Item]:
    """Return what a response adds: its own input and its answer; nothing if it has no answer or was deleted."""
    columns = tables.jobs.c
    wanted = select_jobs().where(columns.tenant_id == tenant_id, columns.id == row["job_id"])
    job = job_of(connection.execute(wanted).mappings().one(), seal)
    if job.state is not JobState.SUCCEEDED or job.output is None or not row["is_there"]:
        return []
    place = SealContext(tenant_id, "responses", "input", row["job_id"])
    given = seal.open(row["input"], place)
    request = seal.open(row["request"], place.with_column("request"))
    stored = StoredResponse(row["job_id"], row["previous_id"], row["is_stored"], row["is_background"], request)
    return [*(given["items"] if isinstance(given, dict) else given), *output_of(job, stored)]


def _add(
    connection: Connection,
    seal: Seal,
    tenant_id: str,
    conversation_id: str,
    items: Sequence[Item],
    made_by: str | None,
) -> None:
    if items:
        rows = [
            {
                "place": place,
                "id": item["id"],
                "response_id": made_by,
                "num_bytes": len(orjson.dumps(item)),
                "item": seal.seal(item, _place(tenant_id, conversation_id, item["id"])),
            }
            for place, item in enumerate(items)
        ]
        connection.execute(_ADD, {"tenant_id": tenant_id, "id": conversation_id, "rows": dump_json(rows)})


def _use(connection: Connection, tenant_id: str, conversation_id: str) -> None:
    if connection.execute(_USE, {"tenant_id": tenant_id, "id": conversation_id}).first() is None:
        raise _not_found(conversation_id)


def _check_there(connection: Connection, tenant_id: str, conversation_id: str) -> None:
    if connection.execute(_GET, {"tenant_id": tenant_id, "id": conversation_id}).first() is None:
        raise _not_found(conversation_id)


def _check_room(num_items: int, num_bytes: int, param: str) -> None:
    if num_items >= MOST_ITEMS or num_bytes > MAX_BYTES:
        raise InvalidRequest(
            f"the conversation would have more than {MOST_ITEMS} items or {MAX_BYTES} bytes: begin a new one with what "
            "matters of it",
            code="conversation_too_long",
            param=param,
        )


def _sealed_metadata(seal: Seal, tenant_id: str, conversation_id: str, metadata: Mapping[str, str]) -> dict[str, str]:
    sealed = seal.seal(dict(metadata), SealContext(tenant_id, "conversations", "metadata", conversation_id))
    return {"tenant_id": tenant_id, "id": conversation_id, "metadata": dump_json(sealed)}


def _place(tenant_id: str, conversation_id: str, item_id: str) -> SealContext:
    return SealContext(tenant_id, "conversation_items", "item", f"{conversation_id}/{item_id}")


def _item(row: RowMapping, seal: Seal, tenant_id: str, conversation_id: str) -> Item:
    opened: Item = seal.open(row["item"], _place(tenant_id, conversation_id, row["id"]))
    return opened


def _conversation(row: RowMapping, seal: Seal) -> Conversation:
    place = SealContext(row["tenant_id"], "conversations", "metadata", row["id"])
    return Conversation(row["id"], row["tenant_id"], seal.open(row["metadata"], place), row["created_at"])


def _not_found(conversation_id: str) -> NotFound:
    return NotFound(f"no conversation {conversation_id[:80]}")


def _no_item(conversation_id: str, item_id: str) -> NotFound:
    return NotFound(f"no item {item_id[:80]} in {conversation_id[:80]}")
