"""Serves the console: ``/console`` is its page, ``/console/...`` are its scripts and styles, all from this package, and
``/console/scopes.js`` with the scopes of API keys.

The page needs no key: it has no data. It asks for a key and calls the public API with it. The policy of the page
allows no inline script and no inline style, and nothing of another server.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import SCOPES

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STATIC = resources.files("headrace.features.console") / "static"
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "txt": "text/plain"}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the console. ``etag`` changes with its content."""

    content: bytes
    media_type: str
    etag: str


def routes(settings: Settings) -> list[BaseRoute]:
    """Return the routes of the console, if the settings open it."""
    if "console" not in settings.open_pages:
        return []
    return [Route("/console", _page), Route("/console/{name:path}", _file)]


async def _page(request: Request) -> Response:
    response = _answer(request, "index.html")
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if name == "index.html":
        raise HTTPException(404)
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    if (file := _files().get(name)) is None:
        raise HTTPException(404)
    # A browser asks each time whether the file is still the same, so a new release is seen at once.
    headers = {"Cache-Control": "no-cache", "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


@cache
def _files() -> Mapping[str, PageFile]:
    found = {name: _page_file(name, file.read_bytes()) for name, file in _walk(_STATIC, "")}
    # The form of a key offers the scopes that the server knows.
    return found | {
        "scopes.js": _page_file("scopes.js", f"export const SCOPES = {json.dumps(sorted(SCOPES))};\n".encode())
    }


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            found.append((prefix + entry.name, entry))
    return found


def _page_file(name: str, content: bytes) -> PageFile:
    digest = hashlib.sha256(content).hexdigest()[:20]
    return PageFile(content, _TYPES[name.rpartition(".")[2]], f'"{digest}"')
