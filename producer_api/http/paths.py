"""Paths of requests: other spellings of a route's path, and whether a route takes a request.

Some clients put a slash at the end of a path, and inference servers have a few routes outside of ``/v1``, or under the
``/v2`` of the API that they have taken a route from. All are served in place: a redirect would go to the host that the
request names, with the key and the body.
"""

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.producer_api.runtime import Runtime

_API = "/v1/"
# As vLLM and others have them. They need a key here, because all under ``/v1/`` does.
_OUTSIDE = frozenset({"/models", "/tokenize", "/detokenize", "/rerank"})
# Cohere's second API has the same request and answer as its first, which are Jina's as well.
_SECOND = {"/v2/rerank": "/v1/rerank"}


class CanonicalPath:
    """Rewrites other spellings of an API path, before anything looks at the path."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = canonical(scope["path"])
        await self.app(scope, receive, send)


def canonical(path: str) -> str:
    """Return the path under ``/v1``, without a last slash; any other path as it is."""
    inside = path if path.startswith(_API) else f"/v1{path}"
    inside = inside.removesuffix("/")
    if (first := _SECOND.get(path.removesuffix("/"))) is not None:
        return first
    is_known = path.startswith((_API, "/models/")) or inside.removeprefix("/v1") in _OUTSIDE
    return inside if is_known else path


class RouteTable:
    """Tells whether any of ``routes`` takes a request."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes
        # A look into a set costs less than the patterns of all routes.
        self._plain = {
            (method, path)
            for route in routes
            if "{" not in (path := getattr(route, "path", "{"))
            for method in getattr(route, "methods", None) or ()
        }

    def takes(self, scope: Scope) -> bool:
        """Return True if a route has the request's path and method."""
        if (scope["method"], scope["path"]) in self._plain:
            return True
        return any(route.matches(scope)[0] is Match.FULL for route in self._routes)
