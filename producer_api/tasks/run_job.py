"""What the routes of all tasks without streams do: store the job, wait for its end, and answer."""

from starlette.requests import Request
from starlette.responses import Response

from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.job_options import JobOptions, is_kept
from headrace.producer_api.http.requests import OriginOf, RuntimeOf
from headrace.producer_api.http.views import ObjectResponse
from headrace.producer_api.jobs.synchronous import submit_and_wait
from headrace.producer_api.tasks.task_routes import ParsedRequest
from headrace.store.errors import HeadraceError


async def run_job(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsWriter,
    parsed: ParsedRequest,
    origin: OriginOf,
    options: JobOptions | None,
) -> Response:
    """Store the job and answer when it has ended. A caller who leaves before the end cancels it by default."""
    try:
        ended = await submit_and_wait(runtime, request, principal, parsed.job, origin, is_kept=is_kept(options))
    except HeadraceError as error:
        raise parsed.complain(error) from error
    if ended is None:
        return Response()  # the caller has left
    return ObjectResponse(parsed.answer(ended.job), headers=ended.headers)
