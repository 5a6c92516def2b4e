"""HTML pages: ``/`` redirects to ``/docs``, which is Swagger UI on the OpenAPI document. They need no other server.

The scripts and styles come from the package fastapi-offline (Swagger UI, Apache-2.0). There is no inline script: the
page's Content-Security-Policy allows only files of this server.
"""

from importlib import resources
from pathlib import Path

import orjson
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from headrace.producer_api.http.views import ObjectResponse

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Relative URLs also work behind a proxy that serves the API under a path.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Headrace API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  deepLinking: true,
  docExpansion: "none",
  defaultModelsExpandDepth: 0,
  persistAuthorization: false,
  validatorUrl: null,
});
"""
_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
# For an hour, because a new release has new files.
_KEPT = {"Cache-Control": "public, max-age=3600"}


def routes(*, with_docs: bool) -> list[BaseRoute]:
    """Return the routes of the pages; without the documentation only ``/``."""
    if not with_docs:
        return [Route("/", _root)]
    return [
        Route("/", _root_with_docs),
        Route("/docs", _docs),
        Route("/docs/{name}", _file),
        Route("/openapi.json", _openapi),
    ]


async def _root(_request: Request) -> Response:
    return ObjectResponse({"name": "headrace", "api": "/v1", "health": "/readyz"})


async def _root_with_docs(request: Request) -> Response:
    """Redirect a browser to the documentation; return its path to a program."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("docs")
    links = {"docs": "/docs", "openapi": "/openapi.json"}
    return ObjectResponse({"name": "headrace", "api": "/v1", "health": "/readyz", **links})


async def _docs(_request: Request) -> Response:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})


async def _openapi(request: Request) -> Response:
    """Return the OpenAPI document. A thread makes it, because other requests would wait a second for it."""
    app: FastAPI = request.app
    return Response(await run_in_threadpool(lambda: orjson.dumps(app.openapi())), media_type="application/json")


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if name == "start.js":
        return Response(_START, media_type="text/javascript", headers=_KEPT)
    if name not in _FILES:
        raise HTTPException(404)
    path = Path(str(resources.files("fastapi_offline") / "static" / name))
    return FileResponse(path, media_type=_FILES[name], headers=_KEPT)
