"""Routes of the tenant's audit log: OpenAI's list of events, and an export of the hash chain as JSON lines."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from headrace.features.audit import export
from headrace.features.audit.hash_chain import canonical
from headrace.features.audit.views import AuditEventList, entry_id, event_page
from headrace.producer_api.access.auth import AuditReader
from headrace.producer_api.http.requests import RuntimeOf
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store import audit_log
from headrace.store.audit_log import AuditEntry, EntryFilter
from headrace.store.db.database import Database

router = APIRouter(prefix="/v1/organization/audit_logs", tags=["audit"], responses=DOCUMENTED)

JSON_LINES = "application/x-ndjson"


def _time(name: str) -> object:
    return Query(alias=f"effective_at[{name}]", ge=0, lt=1 << 35, description="Unix seconds")


async def _entry_filter(
    request: Request,
    event_types: Annotated[list[str], Query(description="only these types, such as `api_key.created`")] = [],  # noqa: B006
    actor_ids: Annotated[list[str], Query(description="only these actors: key ids, or `user@host` of a command")] = [],  # noqa: B006
    resource_ids: Annotated[list[str], Query(description="only these resources")] = [],  # noqa: B006
    gt: Annotated[int | None, _time("gt")] = None,
    gte: Annotated[int | None, _time("gte")] = None,
    lt: Annotated[int | None, _time("lt")] = None,
    lte: Annotated[int | None, _time("lte")] = None,
) -> EntryFilter:
    def all_of(name: str, given: list[str]) -> list[str] | None:
        # OpenAI's clients append brackets to the name of a list parameter.
        return [*given, *request.query_params.getlist(f"{name}[]")] or None

    since = [bound for bound in (gte, None if gt is None else gt + 1) if bound is not None]
    until = [bound for bound in (lt, None if lte is None else lte + 1) if bound is not None]
    return EntryFilter(
        since_s=max(since, default=None),
        until_s=min(until, default=None),
        actions=all_of("event_types", event_types),
        actors=all_of("actor_ids", actor_ids),
        resources=all_of("resource_ids", resource_ids),
    )


@router.get("", response_model=AuditEventList, summary="List audit events")
async def list_audit_logs(
    runtime: RuntimeOf,
    principal: AuditReader,
    only: Annotated[EntryFilter, Depends(_entry_filter)],
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
    before: Annotated[str | None, Query(description="`first_id` of the next page")] = None,
) -> Response:
    """Return the tenant's audit events with actor and address, newest first."""
    older_than, newer_than = entry_id(after, "after"), entry_id(before, "before")

    def read(db: Database) -> list[AuditEntry]:
        return audit_log.list_entries(
            db, principal.tenant_id, limit + 1, only=only, older_than=older_than, newer_than=newer_than
        )

    found = await runtime.lists.read(principal, read)
    # Backwards from a cursor, the extra entry is the newest: the page must be next to the cursor.
    is_backwards = newer_than is not None and older_than is None
    page = found[-limit:] if is_backwards else found[:limit]
    return JsonResponse(event_page(page, has_more=len(found) > limit))


@router.get(
    "/export",
    response_class=Response,
    summary="Export the audit log",
    responses={200: {"content": {JSON_LINES: {}}, "description": "one entry per line, oldest first"}},
)
async def export_audit_logs(runtime: RuntimeOf, principal: AuditReader) -> Response:
    """Stream the tenant's whole hash chain, one entry per line, for `headrace audit verify FILE`."""

    def lines() -> Iterator[bytes]:
        for page in export.pages(runtime.db, principal.tenant_id):
            yield b"".join(canonical(row) + b"\n" for row in page)

    return StreamingResponse(lines(), media_type=JSON_LINES)
