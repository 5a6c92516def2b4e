"""Response models of the audit log: OpenAI's events with their position in the hash chain. No I/O."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.producer_api.http.views import seconds
from headrace.store.audit_log import AuditEntry
from headrace.store.errors import InvalidRequest

_ID_PREFIX = "audit_"
_KEY_PREFIX = "key_"


class KeyActor(BaseModel):
    """The API key that was used."""

    id: str
    type: Literal["service_account"] = "service_account"


class SessionUser(BaseModel):
    """An actor without a key: a command, or the system itself."""

    id: str


class SessionActor(BaseModel):
    """Where an actor without a key acted: `user@host`."""

    user: SessionUser
    ip_address: str | None


class AuditActor(BaseModel):
    """The actor."""

    type: Literal["api_key", "session"]
    api_key: KeyActor | None = None
    session: SessionActor | None = None


class ChainPlace(BaseModel):
    """Position of the event in the tenant's hash chain; see docs/audit.md."""

    seq: int
    prev_hash: str
    hash: str


class AuditEvent(BaseModel):
    """One event. A field named like its `type` describes the resource: `id`, and `data` for a creation or
    `changes_requested` for a change."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str = Field(examples=["api_key.created"])
    effective_at: int
    actor: AuditActor
    ip_address: str | None = Field(description="of the caller, or `user@host` of a command")
    request_id: str | None
    before_hash: str | None = Field(description="SHA-256 of the resource before the change, as canonical JSON")
    after_hash: str | None
    chain: ChainPlace


class AuditEventList(BaseModel):
    """A page of events, newest first; the next page is ``after=last_id``, the previous one
    ``before=first_id``."""

    object: Literal["list"] = "list"
    data: list[AuditEvent]
    first_id: str | None
    last_id: str | None
    has_more: bool


def event_page(entries: Sequence[AuditEntry], *, has_more: bool) -> AuditEventList:
    """Return a page of these entries."""
    events = [_event(entry) for entry in entries]
    first, last = (events[0].id, events[-1].id) if events else (None, None)
    return AuditEventList(data=events, first_id=first, last_id=last, has_more=has_more)


def entry_id(event_id: str | None, param: str) -> int | None:
    """Return the row's number in an event's id; raise InvalidRequest if it is not one."""
    if event_id is None:
        return None
    number = event_id.removeprefix(_ID_PREFIX)
    if number == event_id or not (number.isascii() and number.isdecimal() and len(number) < 19):
        raise InvalidRequest(f"`{param}` is an event's id, such as {_ID_PREFIX}42", param=param)
    return int(number)


def _event(entry: AuditEntry) -> AuditEvent:
    about: dict[str, Any] = {"id": entry.resource}
    if entry.detail:
        about["data" if entry.action.endswith(".created") else "changes_requested"] = entry.detail
    return AuditEvent(
        id=f"{_ID_PREFIX}{entry.id}",
        type=entry.action,
        effective_at=seconds(entry.at),
        actor=_actor(entry),
        ip_address=entry.address,
        request_id=entry.request_id,
        before_hash=entry.before_hash,
        after_hash=entry.after_hash,
        chain=ChainPlace(seq=entry.seq, prev_hash=entry.prev_hash, hash=entry.hash),
        **{entry.action: about},
    )


def _actor(entry: AuditEntry) -> AuditActor:
    if entry.actor.startswith(_KEY_PREFIX):
        return AuditActor(type="api_key", api_key=KeyActor(id=entry.actor))
    session = SessionActor(user=SessionUser(id=entry.actor), ip_address=entry.address)
    return AuditActor(type="session", session=session)
