"""The tenant's own audit log: OpenAI's list of events, and the whole chain as JSON lines that can be verified alone."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from producer_api.access.auth import AuditReader
from producer_api.http.requests import RuntimeOf
from producer_api.http.views import JsonResponse
from producer_api.organization.audit_views import AuditEventList, entry_id, event_page
from producer_api.server.errors import DOCUMENTED
from store.audit import audit, export
from store.audit.audit import AuditEntry, EntryFilter
from store.audit.hash_chain import canonical
from store.db.database import Database

router = APIRouter(prefix="/v1/organization/audit_logs", tags=["audit"], responses=DOCUMENTED)

JSON_LINES = "application/x-ndjson"


def _time(name: str) -> object:
    return Query(alias=f"effective_at[{name}]", ge=0, lt=1 << 35, description="Unix seconds")


async def _asked(
    request: Request,
    event_types: Annotated[list[str], Query(description="only these types, such as `api_key.created`")] = [],  # noqa: B006
    actor_ids: Annotated[list[str], Query(description="only of these keys, or of whoever else acted")] = [],  # noqa: B006
    resource_ids: Annotated[list[str], Query(description="only about these")] = [],  # noqa: B006
    gt: Annotated[int | None, _time("gt")] = None,
    gte: Annotated[int | None, _time("gte")] = None,
    lt: Annotated[int | None, _time("lt")] = None,
    lte: Annotated[int | None, _time("lte")] = None,
) -> EntryFilter:
    def all_of(name: str, given: list[str]) -> list[str] | None:
        # OpenAI's clients put brackets behind the name of a list.
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
    only: Annotated[EntryFilter, Depends(_asked)],
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="the last id of the page before")] = None,
    before: Annotated[str | None, Query(description="the first id of the page after")] = None,
) -> Response:
    """Return what was changed in the tenant, by whom and from where, newest first."""
    older_than, newer_than = entry_id(after, "after"), entry_id(before, "before")

    def read(db: Database) -> list[AuditEntry]:
        return audit.list_entries(
            db, principal.tenant_id, limit + 1, only=only, older_than=older_than, newer_than=newer_than
        )

    found = await runtime.lists.read(principal, read)
    # Before a cursor the surplus one is the newest: the page is what is next to the cursor.
    is_backwards = newer_than is not None and older_than is None
    page = found[-limit:] if is_backwards else found[:limit]
    return JsonResponse(event_page(page, has_more=len(found) > limit))


@router.get(
    "/export",
    response_class=Response,
    summary="Export the audit log",
    responses={200: {"content": {JSON_LINES: {}}, "description": "one row a line, oldest first"}},
)
async def export_audit_logs(runtime: RuntimeOf, principal: AuditReader) -> Response:
    """Stream the tenant's whole chain, one row a line, as `headrace audit verify FILE` reads it."""

    def lines() -> Iterator[bytes]:
        for page in export.pages(runtime.db, principal.tenant_id):
            yield b"".join(canonical(row) + b"\n" for row in page)

    return StreamingResponse(lines(), media_type=JSON_LINES)
