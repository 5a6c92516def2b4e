"""Runs commands in this process against a server that plays the API."""

import json
import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from headrace.cli.tree import app

Request = tuple[str, str, Any]
"""Method, path with query, and the JSON of the body, None without one."""


class PlayedApi:
    """Answers by method and path; each request is recorded. Answers: JSON, a text, (status, JSON), a function."""

    def __init__(self) -> None:
        self.answers: Mapping[str, Any] = {}
        self.requests: list[Request] = []
        self.keys: set[str | None] = set()
        self.headers: list[dict[str, str]] = []
        self.raw_paths: list[str] = []

    def answer(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, str]:
        """Return status, body and content type."""
        self.requests.append((method, unquote(path), json.loads(body) if body else None))
        self.raw_paths.append(path)
        self.keys.add(headers.get("authorization"))
        self.headers.append({name.lower(): value for name, value in headers.items()})
        found = self.answers.get(f"{method} {unquote(path)}", self.answers.get(f"{method} {path.partition('?')[0]}"))
        found = found() if callable(found) else found
        if isinstance(found, str):
            return 200, found.encode(), "text/event-stream" if "event:" in found else "image/svg+xml"
        if isinstance(found, list):
            found = {"object": "list", "data": found}
        status, content = found if isinstance(found, tuple) else (404 if found is None else 200, found)
        if content is None:
            content = {"error": {"message": "nothing here", "type": "x", "code": "not_found", "param": None}}
        return status, json.dumps(content).encode(), "application/json"


@contextmanager
def played_api() -> Iterator[tuple[PlayedApi, str]]:
    """Yield the API and its URL."""
    api = PlayedApi()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, content, kind = api.answer(self.command, self.path, body, self.headers)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class's names

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield api, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Commands:
    """Runs ``headrace`` with a key of the played API."""

    def __init__(self, api: PlayedApi, capsys: pytest.CaptureFixture[str]) -> None:
        self.api = api
        self.err = ""
        self.code = 0
        self._capsys = capsys

    def __call__(self, line: str, answers: Mapping[str, Any]) -> str:
        """Return the standard output; ``err`` and ``code`` are those of the last command. Raises its error."""
        self.api.answers, self.api.requests, self.api.headers, self.api.raw_paths = answers, [], [], []
        self._capsys.readouterr()
        self.code = app(shlex.split(line), prog_name="headrace", standalone_mode=False) or 0
        out, self.err = self._capsys.readouterr()
        return out

    def rest(self) -> tuple[str, str]:
        """Return the texts on stdout and stderr of the last command, which failed."""
        out, err = self._capsys.readouterr()
        return out, err


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[PlayedApi, str]]:
    with played_api() as found:
        yield found


@pytest.fixture
def headrace(
    api: tuple[PlayedApi, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Commands:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEADRACE_API_URL", api[1])
    monkeypatch.setenv("HEADRACE_API_KEY", "hr_key")
    monkeypatch.chdir(tmp_path)
    return Commands(api[0], capsys)
