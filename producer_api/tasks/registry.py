"""The routes of every task: of the core's, of features (the files ``task_routes``) and of other packages.

A line of a batch is read by the code that the route uses, so it means what the same request would have meant.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from headrace.assembly import parts
from headrace.producer_api.pipelines.pipeline_jobs import ParsedPipelineJob, reader_of
from headrace.producer_api.server.errors import from_validation
from headrace.producer_api.tasks.own_task import own_routes
from headrace.producer_api.tasks.task_routes import ParseBody, ParsedRequest, TaskRoutes
from headrace.store.errors import InvalidRequest
from headrace.store.tasks.registry import OWN_TASKS

TASK_ROUTES = (*parts("task_routes", TaskRoutes), *map(own_routes, OWN_TASKS))

TASK_URLS: Mapping[str, ParseBody] = {url: parse for routes in TASK_ROUTES for url, parse in routes.urls.items()}
"""The URLs of tasks that a batch may name, beside those of pipelines."""


def parser_of(url: str, param: str) -> Callable[[Mapping[str, Any]], ParsedRequest | ParsedPipelineJob]:
    """Return the reader of a body for this URL. Raises InvalidRequest for a URL that a batch may not name."""
    parse = TASK_URLS.get(url) or reader_of(url)
    if parse is None:
        known = [*sorted(TASK_URLS), "/v1/pipelines/NAME/jobs"]
        raise InvalidRequest(f"`{param}` must be one of {', '.join(known)}", param=param)
    return parse


def read_task(url: str, body: Mapping[str, Any]) -> ParsedRequest | ParsedPipelineJob:
    """Return the job that the body means at this URL. Raises InvalidRequest as the route would."""
    parse = parser_of(url, "url")
    if body.get("stream"):
        raise InvalidRequest("a batch has no streams: leave `stream` out", param="stream")
    try:
        return parse(body)
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False)) from error
