"""Calls registered tools, each call on a thread of the engine for calls (``models.engine.call_engine``).

    order ──▶ approved? ──▶ known? ──▶ arguments valid? ──▶ circuit closed? ──▶ a turn ──▶ tries within one deadline
                └─ each "no" is a result for the model, which says why

A tool that is slow or dead harms its own jobs alone: at most a quarter of the slots call one tool, a call waits a
second for its turn, and after three calls without an answer the tool is not called for a while.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import structlog

from headrace.features.flows.running.call_arguments import arguments_of
from headrace.features.flows.tools import calculator
from headrace.features.flows.tools.builtin import CALCULATOR, CALCULATOR_PARAMETERS, FILE_SEARCH, FILE_SEARCH_PARAMETERS
from headrace.features.flows.tools.mcp_client import McpRefused, McpStatus
from headrace.features.flows.tools.mcp_servers import McpServers
from headrace.features.flows.tools.mcp_stdio import CommandUnknown
from headrace.features.flows.tools.tool_definition import Definition, HttpTool, McpServer
from headrace.features.flows.tools.tool_results import (
    CallResult,
    ToolOrder,
    ToolResult,
    failed,
    read_mcp_result,
    read_reply,
)
from headrace.models.engine.requests import EncodeRow
from headrace.store.calls.receiver_breaker import ReceiverBreaker
from headrace.store.calls.ssrf_guard import AddressRefused, AnswerTooLong, CallFailed, CallTimedOut, GuardedClient
from headrace.store.mcp_commands import Commands

log = structlog.get_logger(__name__)

TURN_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.1
"""Between the first try and the second; it doubles."""

_ENVELOPE: Final = 4
_ENVELOPE_BYTES: Final = 65_536
"""An answer of MCP is JSON around the text, often with the same again as data: so much longer may it be."""

_NO_COMMANDS: Final[Commands] = {}

_OUR_HEADERS: Final = {
    "user-agent": "Headrace-Tools/1",
    "accept": "application/json, text/*",
    "content-type": "application/json",
}


class ToolCaller:
    """An ``Encoder`` of calls: the options of a row are a ``ToolOrder``, its bytes the result as JSON.

    ``on_call``: is told the kind of each call, its result, and how long it took in seconds.
    """

    def __init__(
        self,
        client: GuardedClient,
        *,
        context_window: int,
        most_of_one: int,
        commands: Commands = _NO_COMMANDS,
        turn_s: float = TURN_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.context_window = context_window
        self._client = client
        self._servers = McpServers(client, commands)
        self._most_of_one = most_of_one
        self._turn_s = turn_s
        self._sleep = sleep
        self._clock = clock
        self._changed = threading.Condition()
        self._running: Counter[str] = Counter()
        self._breaker = ReceiverBreaker()
        self.on_call: Callable[[str, str, float], None] = _ignore

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes]:
        """Return the result of each call."""
        return [json.dumps(self.call(row.options).output).encode() for row in rows]

    def num_open(self) -> int:
        """Return the number of tools that are not called for a while, of all tenants."""
        with self._changed:
            return len(self._breaker.blocked(self._clock()))

    def call(self, order: ToolOrder) -> ToolResult:
        """Make a call and return its result, also of one that failed."""
        start = self._clock()
        found = self._called(order)
        took_s = self._clock() - start
        self.on_call(order.kind, found.result, took_s)
        if found.is_error:
            log.info(
                "tool_call_failed",
                job_id=order.key,
                tool=order.name,
                kind=order.kind,
                result=str(found.result),
                status=found.status,
                tries=found.tries,
                took_ms=round(took_s * 1000),
            )
        return found

    def _called(self, order: ToolOrder) -> ToolResult:
        if order.refusal is not None:
            return failed(order.refusal)
        try:
            if order.name == CALCULATOR:
                found = arguments_of(order.arguments, CALCULATOR_PARAMETERS)
                return ToolResult(calculator.compute(found["expression"]))
            if order.name == FILE_SEARCH:
                arguments_of(order.arguments, FILE_SEARCH_PARAMETERS)
                return failed("file_search is called by models, in jobs that name its vector stores")
            called = order.tool_of(order.tool) if isinstance(order.tool, McpServer) else order.tool
            if order.tool is None or called is None:
                return failed(f"there is no tool {order.name}")
            arguments = arguments_of(order.arguments, called.parameters)
        except ValueError as error:
            return failed(str(error))
        return self._guarded(order, order.tool, arguments)

    def _guarded(self, order: ToolOrder, tool: Definition, arguments: Mapping[str, Any]) -> ToolResult:
        """Call unless the tool is unavailable or busy, and learn from what comes of it."""
        name = f"{order.tenant_id} {order.owner}"
        with self._turn(name) as refusal:
            if refusal is not None:
                return refusal
            result = self._tried(order, tool, arguments)
        with self._changed:
            self._learn(order, name, result)
        return result

    def _learn(self, order: ToolOrder, name: str, result: ToolResult) -> None:
        if result.is_unavailable:
            self._breaker.failed(name, self._clock())
            if (pause_s := self._breaker.blocked_for_s(name, self._clock())) > 0:
                log.warning("tool_circuit_opened", tenant_id=order.tenant_id, tool=order.owner, pause_s=round(pause_s))
            return
        if self._breaker.has_paused(name):
            log.info("tool_circuit_closed", tenant_id=order.tenant_id, tool=order.owner)
        self._breaker.answered(name)

    @contextmanager
    def _turn(self, name: str) -> Iterator[ToolResult | None]:
        """Yield None when the call may be made, else the result that says why it may not."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_open(name) or self._running[name] < self._most_of_one, self._turn_s)
            tool = name.rpartition(" ")[2]
            if self._is_open(name):
                why = f"the tool {tool} gave no answer several times, and is not called now"
                refusal = failed(why, kept_from=CallResult.PAUSED)
            elif self._running[name] >= self._most_of_one:
                refusal = failed(f"the tool {tool} is busy with other calls", kept_from=CallResult.BUSY)
            else:
                refusal = None
                self._running[name] += 1
        try:
            yield refusal
        finally:
            if refusal is None:
                with self._changed:
                    self._running[name] -= 1
                    if not self._running[name]:
                        del self._running[name]
                    self._changed.notify_all()

    def _is_open(self, name: str) -> bool:
        return self._breaker.blocked_for_s(name, self._clock()) > 0

    def _tried(self, order: ToolOrder, tool: Definition, arguments: Mapping[str, Any]) -> ToolResult:
        """Try until there is an answer of the tool's own, or no try or no time is left."""
        end = self._clock() + tool.timeout_ms / 1000
        tries, pause_s = 0, FIRST_PAUSE_S
        while True:
            tries += 1
            result = self._once(order, tool, arguments, end - self._clock(), tries)
            if not result.is_unavailable or tries >= tool.max_attempts or self._clock() + pause_s >= end:
                return result
            self._sleep(pause_s)
            pause_s *= 2

    def _once(
        self, order: ToolOrder, tool: Definition, arguments: Mapping[str, Any], left_s: float, tries: int
    ) -> ToolResult:
        left_s = max(left_s, 0.0)
        try:
            if isinstance(tool, McpServer):
                return self._over_mcp(order, tool, arguments, left_s, tries)
            return self._over_http(order, tool, arguments, left_s, tries)
        except CallFailed as error:
            return _unanswered(error, tool, tries)
        except McpStatus as error:
            return read_reply(error.reply, tries)
        except McpRefused as error:
            return failed(str(error), status=200, tries=tries)

    def _over_http(
        self, order: ToolOrder, tool: HttpTool, arguments: Mapping[str, Any], left_s: float, tries: int
    ) -> ToolResult:
        reply = self._client.post(
            tool.url,
            headers={**_OUR_HEADERS, "idempotency-key": order.key, **tool.headers},
            body=json.dumps(arguments).encode(),
            timeout_s=left_s,
            most_bytes=tool.max_result_bytes,
        )
        return read_reply(reply, tries)

    def _over_mcp(
        self, order: ToolOrder, server: McpServer, arguments: Mapping[str, Any], left_s: float, tries: int
    ) -> ToolResult:
        tool = order.tool_of(server)
        assert tool is not None  # noqa: S101 - checked by ``call``
        most_bytes = server.max_result_bytes
        with self._servers.session(server, left_s, {"user-agent": _OUR_HEADERS["user-agent"]}) as session:
            result = session.call_tool(tool.name, arguments, order.key, _ENVELOPE * most_bytes + _ENVELOPE_BYTES)
        return read_mcp_result(result, most_bytes, tries)


def _ignore(_kind: str, _result: str, _took_s: float) -> None:
    """Count nothing."""


def _unanswered(error: CallFailed, tool: Definition, tries: int) -> ToolResult:
    match error:
        case CallTimedOut():
            return failed(f"the tool gave no answer within {tool.timeout_ms / 1000:g} s", tries=tries)
        case AnswerTooLong():
            # The tool has answered, so it is available: a status of its own says so.
            return failed(f"the tool's answer is longer than {tool.max_result_bytes} bytes", status=200, tries=tries)
        case CommandUnknown():
            return failed(str(error), tries=0)
        case AddressRefused():
            return failed("the tool's address may not be called", tries=0)
        case _:
            return failed(f"the tool gave no answer: {error}", tries=tries)
