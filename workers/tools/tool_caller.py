"""Calls registered tools, each call on a thread of the engine for calls (``models.engine.call_engine``).

    order ──▶ known? ──▶ arguments valid? ──▶ circuit closed? ──▶ a turn ──▶ POST, tries within one deadline ──▶ result
                └─ each "no" is a result for the model, which says why

A tool that is slow or dead harms its own jobs alone: at most a quarter of the slots call one tool, a call waits a
second for its turn, and after three calls without an answer the tool is not called for a while.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final

from models.engine.requests import EncodeRow
from store.payloads.tool_definition import HttpTool
from store.tools.builtin import CALCULATOR, CALCULATOR_PARAMETERS
from workers.tools import calculator
from workers.tools.tool_results import ToolOrder, ToolResult, arguments_of, failed, read_reply
from workers.webhooks.receiver_fairness import ReceiverBreaker
from workers.webhooks.ssrf_guard import AddressRefused, AnswerTooLong, CallFailed, CallTimedOut, GuardedClient

TURN_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.1
"""Between the first try and the second; it doubles."""

_OUR_HEADERS: Final = {
    "user-agent": "Headrace-Tools/1",
    "accept": "application/json, text/*",
    "content-type": "application/json",
}


class ToolCaller:
    """An ``Encoder`` of calls: the options of a row are a ``ToolOrder``, its bytes the result as JSON."""

    def __init__(
        self,
        client: GuardedClient,
        *,
        context_window: int,
        most_of_one: int,
        turn_s: float = TURN_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.context_window = context_window
        self._client = client
        self._most_of_one = most_of_one
        self._turn_s = turn_s
        self._sleep = sleep
        self._clock = clock
        self._changed = threading.Condition()
        self._running: Counter[str] = Counter()
        self._breaker = ReceiverBreaker()

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes]:
        """Return the result of each call."""
        return [json.dumps(asdict(self.call(row.options))).encode() for row in rows]

    def call(self, order: ToolOrder) -> ToolResult:
        """Make a call and return its result, also of one that failed."""
        try:
            if order.name == CALCULATOR:
                found = arguments_of(order.arguments, CALCULATOR_PARAMETERS)
                return ToolResult(calculator.compute(found["expression"]))
            if order.tool is None:
                return failed(f"there is no tool {order.name}")
            body = json.dumps(arguments_of(order.arguments, order.tool.parameters)).encode()
        except ValueError as error:
            return failed(str(error))
        return self._guarded(order, order.tool, body)

    def _guarded(self, order: ToolOrder, tool: HttpTool, body: bytes) -> ToolResult:
        """Call unless the tool is unavailable or busy, and learn from what comes of it."""
        name = f"{order.tenant_id} {order.name}"
        with self._turn(name) as refusal:
            if refusal is not None:
                return failed(refusal)
            result = self._tried(order, tool, body)
        with self._changed:
            if result.is_unavailable:
                self._breaker.failed(name, self._clock())
            else:
                self._breaker.answered(name)
        return result

    @contextmanager
    def _turn(self, name: str) -> Iterator[str | None]:
        """Yield None when the call may be made, else why it may not."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_open(name) or self._running[name] < self._most_of_one, self._turn_s)
            if self._is_open(name):
                refusal = f"the tool {name.rpartition(' ')[2]} gave no answer several times, and is not called now"
            elif self._running[name] >= self._most_of_one:
                refusal = f"the tool {name.rpartition(' ')[2]} is busy with other calls"
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

    def _tried(self, order: ToolOrder, tool: HttpTool, body: bytes) -> ToolResult:
        """Try until there is an answer of the tool's own, or no try or no time is left."""
        end = self._clock() + tool.timeout_ms / 1000
        tries, pause_s = 0, FIRST_PAUSE_S
        while True:
            tries += 1
            result = self._once(order, tool, body, end - self._clock(), tries)
            if not result.is_unavailable or tries >= tool.max_attempts or self._clock() + pause_s >= end:
                return result
            self._sleep(pause_s)
            pause_s *= 2

    def _once(self, order: ToolOrder, tool: HttpTool, body: bytes, left_s: float, tries: int) -> ToolResult:
        headers = {**_OUR_HEADERS, "idempotency-key": order.key, **tool.headers}
        try:
            reply = self._client.post(
                tool.url, headers=headers, body=body, timeout_s=max(left_s, 0.0), most_bytes=tool.max_result_bytes
            )
        except CallTimedOut:
            return failed(f"the tool gave no answer within {tool.timeout_ms / 1000:g} s", tries=tries)
        except AnswerTooLong:
            # The tool has answered, so it is available: a status of its own says so.
            return failed(f"the tool's answer is longer than {tool.max_result_bytes} bytes", status=200, tries=tries)
        except AddressRefused:
            return failed("the tool's address may not be called", tries=0)
        except CallFailed as error:
            return failed(f"the tool was not reached: {error}", tries=tries)
        return read_reply(reply, tries)
