"""MCP over streamable HTTP, through the guarded client: a session, the list of its tools, and a call of one.

    initialize ──▶ notifications/initialized ──▶ tools/list … | tools/call ──▶ DELETE, if the server named a session

Each message is a POST; its answer is JSON or a stream of events, which is left behind the answer. The server is told no
capabilities, so it asks for nothing. One deadline bounds the session. Only what MCP says is here: what a result means
for a model is decided by the caller.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import orjson

from store.calls.ssrf_guard import CallFailed, GuardedClient, Reply

# Later versions let a server end the stream of an answer early, to be asked again for the rest of it.
_OFFERED: Final = "2025-06-18"
_SPOKEN: Final = ("2025-03-26", "2025-06-18", "2025-11-25")
_MOST_PAGES: Final = 20
_MOST_HELLO_BYTES: Final = 256 * 1024
_LONGEST_GOODBYE_S: Final = 1.0
_MOST_SHOWN: Final = 500


class McpRefused(Exception):
    """The server answered with an error of JSON-RPC, or with what is no MCP. The message may be shown to the tenant."""


class McpStatus(Exception):
    """The server answered with a status that is no success: ``reply``."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"the server answered with the status {reply.status}")
        self.reply = reply


class McpSession:
    """A session that has begun. All methods raise CallFailed, McpRefused and McpStatus."""

    def __init__(
        self, client: GuardedClient, url: str, headers: Mapping[str, str], left_s: Callable[[], float]
    ) -> None:
        self._client, self._url, self._left_s = client, url, left_s
        self._headers = {**headers, "content-type": "application/json", "accept": "application/json, text/event-stream"}
        self._ids = itertools.count(1)

    def initialize(self) -> None:
        """Agree on a version of the protocol."""
        hello = {"protocolVersion": _OFFERED, "capabilities": {}, "clientInfo": {"name": "headrace", "version": "1"}}
        result, reply = self._asked("initialize", hello, _MOST_HELLO_BYTES, {})
        version = result.get("protocolVersion")
        if version not in _SPOKEN:
            raise McpRefused(f"the server speaks another version of MCP than {', '.join(_SPOKEN)}")
        self._headers["mcp-protocol-version"] = version
        if session := reply.headers.get("mcp-session-id"):
            self._headers["mcp-session-id"] = session
        self._post({"jsonrpc": "2.0", "method": "notifications/initialized"}, _MOST_HELLO_BYTES, {}, None)

    def list_tools(self, most_bytes: int) -> list[Mapping[str, Any]]:
        """Return the tools as the server tells them; each page has at most ``most_bytes``."""
        found: list[Mapping[str, Any]] = []
        cursor = None
        for _ in range(_MOST_PAGES):
            page, _reply = self._asked("tools/list", {} if cursor is None else {"cursor": cursor}, most_bytes, {})
            tools, cursor = page.get("tools"), page.get("nextCursor")
            if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
                raise McpRefused("the server's list of tools is no list")
            found += tools
            if cursor is None:
                return found
        raise McpRefused(f"the server's list of tools has more than {_MOST_PAGES} pages")

    def call_tool(self, name: str, arguments: Mapping[str, Any], key: str, most_bytes: int) -> Mapping[str, Any]:
        """Return the result of a call. ``key``: the same for each try, for a server that makes a call only once."""
        params = {"name": name, "arguments": arguments, "_meta": {"idempotency-key": key}}
        return self._asked("tools/call", params, most_bytes, {"idempotency-key": key})[0]

    def end(self) -> None:
        """Tell the server that its session is over, if it named one. It need not answer."""
        if "mcp-session-id" in self._headers:
            with suppress(CallFailed):
                timeout_s = min(max(self._left_s(), 0.0), _LONGEST_GOODBYE_S)
                self._client.delete(self._url, headers=self._headers, timeout_s=timeout_s)

    def _asked(
        self, method: str, params: Mapping[str, Any], most_bytes: int, headers: Mapping[str, str]
    ) -> tuple[Mapping[str, Any], Reply]:
        answer = _Answer(next(self._ids))
        message = {"jsonrpc": "2.0", "id": answer.id, "method": method, "params": params}
        reply = self._post(message, most_bytes, headers, answer.is_in)
        return answer.result(reply), reply

    def _post(
        self,
        message: Mapping[str, Any],
        most_bytes: int,
        headers: Mapping[str, str],
        is_end: Callable[[bytes], bool] | None,
    ) -> Reply:
        reply = self._client.post(
            self._url,
            headers={**self._headers, **headers},
            body=orjson.dumps(message),
            timeout_s=max(self._left_s(), 0.0),
            most_bytes=most_bytes,
            is_end=is_end,
        )
        if not 200 <= reply.status < 300:
            raise McpStatus(reply)
        return reply


@contextmanager
def mcp_session(
    client: GuardedClient,
    url: str,
    headers: Mapping[str, str],
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[McpSession]:
    """Begin a session, and end it behind the block. Raises CallFailed, McpRefused, McpStatus."""
    end = clock() + timeout_s
    session = McpSession(client, url, headers, lambda: end - clock())
    try:
        session.initialize()
        yield session
    finally:
        session.end()


class _Answer:
    """The answer to one request: looked for in the events of a stream while they come, or in the whole body."""

    def __init__(self, id: int) -> None:  # noqa: A002 - the protocol's name
        self.id = id
        self._found: Mapping[str, Any] | None = None
        self._line = bytearray()
        self._data: list[bytes] = []

    def is_in(self, chunk: bytes) -> bool:
        """Take the next part of the body. True when the answer has come: what follows is of no use."""
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._line += line
            self._take(bytes(self._line).rstrip(b"\r"))
            self._line.clear()
        self._line += rest
        return self._found is not None

    def result(self, reply: Reply) -> Mapping[str, Any]:
        """Return the result. Raises McpRefused for an error, and if there is no answer."""
        if self._found is None:
            is_stream = reply.headers.get("content-type", "").startswith("text/event-stream")
            self._note(b"\n".join(self._data) if is_stream else reply.body)
        if self._found is None:
            raise McpRefused("the server gave no answer of MCP")
        error, result = self._found.get("error"), self._found.get("result")
        if isinstance(error, dict):
            raise McpRefused(f"the server refused: {str(error.get('message'))[:_MOST_SHOWN]}")
        if not isinstance(result, dict):
            raise McpRefused("the server's answer has no result")
        return result

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            self._note(b"\n".join(self._data))
            self._data.clear()

    def _note(self, text: bytes) -> None:
        """Keep a message if it is the answer; others, such as progress, are of no use here."""
        with suppress(ValueError, RecursionError):
            message = orjson.loads(text)
            if isinstance(message, dict) and message.get("id") == self.id and "method" not in message:
                self._found = message
