"""The routes of every task: of the core's, of features (the files ``task_routes``) and of other packages.

A line of a batch is read by the code that the route uses, so it means what the same request would have meant.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from headrace.assembly import parts
from headrace.producer_api.server.errors import from_validation
from headrace.producer_api.tasks.line_urls import LineUrls
from headrace.producer_api.tasks.own_task import own_routes
from headrace.producer_api.tasks.task_routes import ParseBody, TaskRoutes
from headrace.store.errors import InvalidRequest
from headrace.store.tasks.registry import OWN_TASKS

_OURS = parts("task_routes", TaskRoutes)
_WITH_ROUTES = frozenset(routes.spec.name for routes in _OURS)
TASK_ROUTES = (*_OURS, *(own_routes(task) for task in OWN_TASKS if task.name not in _WITH_ROUTES))

TASK_URLS: Mapping[str, ParseBody] = {url: parse for routes in TASK_ROUTES for url, parse in routes.urls.items()}
"""The URLs of tasks that a batch may name, beside ``_MORE_URLS``."""

_MORE_URLS = parts("lines", LineUrls)


def parser_of(url: str, param: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return the reader of a body for this URL: it returns a ``ParsedRequest``, or what the feature of the URL has.

    Raises InvalidRequest for a URL that a batch may not name.
    """
    if (parse := TASK_URLS.get(url)) is not None:
        return parse
    for more in _MORE_URLS:
        if (reader := more.reader_of(url)) is not None:
            return reader
    known = [*sorted(TASK_URLS), *(more.form for more in _MORE_URLS)]
    raise InvalidRequest(f"`{param}` must be one of {', '.join(known)}", param=param)


def read_task(url: str, body: Mapping[str, Any]) -> Any:
    """Return what ``parser_of`` makes of the body. Raises InvalidRequest as the route would."""
    parse = parser_of(url, "url")
    if body.get("stream"):
        raise InvalidRequest("a batch has no streams: leave `stream` out", param="stream")
    try:
        return parse(body)
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False)) from error
