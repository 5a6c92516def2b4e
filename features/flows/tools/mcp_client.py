"""The messages of MCP: a session, the list of its tools, and a call of one; and their way over streamable HTTP.

    initialize ──▶ notifications/initialized ──▶ tools/list … | tools/call ──▶ DELETE, if the server named a session

Over HTTP each message is a POST through the guarded client; its answer is JSON or a stream of events, which is left
behind the answer. ``mcp_stdio`` is the other way. The server is told no capabilities, so it asks for
nothing. One deadline bounds the session. What a result means for a model is decided by the caller.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol

import orjson

from headrace.store.calls.ssrf_guard import CallFailed, GuardedClient, Reply

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


class Wire(Protocol):
    """The way of messages to a server, within the deadline of the session. The methods raise CallFailed, McpStatus."""

    def send(self, message: Mapping[str, Any], most_bytes: int, answer: "McpAnswer | None", key: str | None) -> None:
        """Send a message, and read until its answer is in or no more comes.

        ``answer``: None for a message that has none. ``key``: the idempotency key of a call.
        """

    def agreed(self, version: str) -> None:
        """Take the version of the protocol that holds from now on."""


class McpSession:
    """A session that has begun. All methods raise CallFailed, McpRefused and McpStatus."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._ids = itertools.count(1)

    def initialize(self) -> None:
        """Agree on a version of the protocol."""
        hello = {"protocolVersion": _OFFERED, "capabilities": {}, "clientInfo": {"name": "headrace", "version": "1"}}
        version = self._asked("initialize", hello, _MOST_HELLO_BYTES).get("protocolVersion")
        if version not in _SPOKEN:
            raise McpRefused(f"the server speaks another version of MCP than {', '.join(_SPOKEN)}")
        self._wire.agreed(version)
        self._wire.send({"jsonrpc": "2.0", "method": "notifications/initialized"}, _MOST_HELLO_BYTES, None, None)

    def list_tools(self, most_bytes: int) -> list[Mapping[str, Any]]:
        """Return the tools as the server tells them; each page has at most ``most_bytes``."""
        found: list[Mapping[str, Any]] = []
        cursor = None
        for _ in range(_MOST_PAGES):
            page = self._asked("tools/list", {} if cursor is None else {"cursor": cursor}, most_bytes)
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
        return self._asked("tools/call", params, most_bytes, key)

    def _asked(
        self, method: str, params: Mapping[str, Any], most_bytes: int, key: str | None = None
    ) -> Mapping[str, Any]:
        answer = McpAnswer(next(self._ids))
        message = {"jsonrpc": "2.0", "id": answer.id, "method": method, "params": params}
        self._wire.send(message, most_bytes, answer, key)
        return answer.result()


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
    wire = _HttpWire(client, url, headers, lambda: end - clock())
    try:
        session = McpSession(wire)
        session.initialize()
        yield session
    finally:
        wire.end()


class McpAnswer:
    """The answer to one request, looked for among the messages that come."""

    def __init__(self, id: int) -> None:  # noqa: A002 - the protocol's name
        self.id = id
        self._found: Mapping[str, Any] | None = None

    @property
    def is_in(self) -> bool:
        """True when the answer has come: what follows is of no use."""
        return self._found is not None

    def note(self, text: bytes) -> None:
        """Keep a message if it is the answer; others, such as progress, are of no use here."""
        with suppress(ValueError, RecursionError):
            message = orjson.loads(text)
            if isinstance(message, dict) and message.get("id") == self.id and "method" not in message:
                self._found = message

    def result(self) -> Mapping[str, Any]:
        """Return the result. Raises McpRefused for an error, and if there is no answer."""
        if self._found is None:
            raise McpRefused("the server gave no answer of MCP")
        error, result = self._found.get("error"), self._found.get("result")
        if isinstance(error, dict):
            raise McpRefused(f"the server refused: {str(error.get('message'))[:_MOST_SHOWN]}")
        if not isinstance(result, dict):
            raise McpRefused("the server's answer has no result")
        return result


class _HttpWire:
    """POST for each message, with the headers of the session."""

    def __init__(
        self, client: GuardedClient, url: str, headers: Mapping[str, str], left_s: Callable[[], float]
    ) -> None:
        self._client, self._url, self._left_s = client, url, left_s
        self._headers = {**headers, "content-type": "application/json", "accept": "application/json, text/event-stream"}

    def send(self, message: Mapping[str, Any], most_bytes: int, answer: McpAnswer | None, key: str | None) -> None:
        events = None if answer is None else _Events(answer)
        reply = self._client.post(
            self._url,
            headers=self._headers if key is None else {**self._headers, "idempotency-key": key},
            body=orjson.dumps(message),
            timeout_s=max(self._left_s(), 0.0),
            most_bytes=most_bytes,
            is_end=None if events is None else events.is_end,
        )
        if not 200 <= reply.status < 300:
            raise McpStatus(reply)
        if events is not None:
            events.close(reply)
        if session := reply.headers.get("mcp-session-id"):
            self._headers.setdefault("mcp-session-id", session)

    def agreed(self, version: str) -> None:
        self._headers["mcp-protocol-version"] = version

    def end(self) -> None:
        """Tell the server that its session is over, if it named one. It need not answer."""
        if "mcp-session-id" in self._headers:
            with suppress(CallFailed):
                timeout_s = min(max(self._left_s(), 0.0), _LONGEST_GOODBYE_S)
                self._client.delete(self._url, headers=self._headers, timeout_s=timeout_s)


class _Events:
    """Looks for an answer in the events of a stream while they come, or in the whole body."""

    def __init__(self, answer: McpAnswer) -> None:
        self._answer = answer
        self._line = bytearray()
        self._data: list[bytes] = []

    def is_end(self, chunk: bytes) -> bool:
        """Take the next part of the body. True when the answer has come."""
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._line += line
            self._take(bytes(self._line).rstrip(b"\r"))
            self._line.clear()
        self._line += rest
        return self._answer.is_in

    def close(self, reply: Reply) -> None:
        """Take what has come, when no more comes."""
        if not self._answer.is_in:
            is_stream = reply.headers.get("content-type", "").startswith("text/event-stream")
            self._answer.note(b"\n".join(self._data) if is_stream else reply.body)

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            self._answer.note(b"\n".join(self._data))
            self._data.clear()
