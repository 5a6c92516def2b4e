"""What a call of a tool means for the model: checks of its arguments and of its answer. Pure values in and out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from headrace.features.flows.store.approvals import Verdict
from headrace.features.flows.task import error_text
from headrace.features.flows.tools.builtin import BUILT_IN
from headrace.features.flows.tools.tool_definition import Definition, McpServer, McpTool
from headrace.store.calls.ssrf_guard import Reply
from headrace.store.payloads.server_tools import SEPARATOR
from headrace.store.payloads.tool_approval import ApprovalState

MOST_SHOWN: Final = 500
"""Characters of the body of an error that a model gets."""

_NUL: Final = "\x00"
_NO_TEXT: Final = "the tool's answer is not text in UTF-8"

_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class ToolOrder:
    """A call to make. ``key``: the same for each try. ``tool``: None for one that is not registered. ``refusal``: why
    it may not be made, of a call that was not approved.
    """

    name: str
    arguments: str
    tenant_id: str = ""
    key: str = ""
    tool: Definition | None = None
    refusal: str | None = None

    @property
    def kind(self) -> str:
        """How the tool is called: ``http``, ``mcp`` or ``builtin``; ``unknown`` if there is no such tool."""
        if self.name in BUILT_IN:
            return "builtin"
        return "unknown" if self.tool is None else self.tool.type

    @property
    def owner(self) -> str:
        """What answers: the tool, or the server that has it. It has the circuit and the turns."""
        return self.name.partition(SEPARATOR)[0] if isinstance(self.tool, McpServer) else self.name

    def tool_of(self, server: McpServer) -> McpTool | None:
        """Return the tool of a server; None if the server has no such tool any more."""
        return server.tools.get(self.name.partition(SEPARATOR)[2])


class CallResult(StrEnum):
    """What became of a call, for metrics and logs."""

    OK = "ok"
    ERROR = "error"
    """The tool answered with an error, or its answer is not a result of a call."""
    UNANSWERED = "unanswered"
    NOT_CALLED = "not_called"
    """It was not approved, or its arguments, its name or its address are wrong."""
    BUSY = "busy"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The text for the model, whether it is an error, the status of the answer, and how often the tool was called.

    ``kept_from``: why a call that could be made was not.
    """

    text: str
    is_error: bool = False
    status: int | None = None
    tries: int = 0
    kept_from: CallResult | None = field(default=None, compare=False)

    @property
    def output(self) -> dict[str, Any]:
        """The output of the job."""
        return {"text": self.text, "is_error": self.is_error, "status": self.status, "tries": self.tries}

    @property
    def result(self) -> CallResult:
        """What became of the call."""
        if not self.is_error:
            return CallResult.OK
        if self.tries == 0:
            return self.kept_from or CallResult.NOT_CALLED
        return CallResult.UNANSWERED if self.status is None else CallResult.ERROR

    @property
    def is_unavailable(self) -> bool:
        """True if the tool gave no answer of its own: another try may get one."""
        return self.is_error and self.tries > 0 and (self.status is None or self.status in _TRY_AGAIN)


def failed(why: str, *, status: int | None = None, tries: int = 0, kept_from: CallResult | None = None) -> ToolResult:
    """Return the result of a call that failed."""
    return ToolResult(error_text(why), True, status, tries, kept_from)


def refusal_of(verdict: Verdict | None) -> str | None:
    """Return why a call is not made, for the model; None if it was approved or needs no approval."""
    if verdict is None or verdict.state is ApprovalState.APPROVED:
        return None
    if verdict.state is not ApprovalState.REFUSED:
        return "the call was not approved in time, so it was not made"
    return f"the call was refused, so it was not made{f': {verdict.reason}' if verdict.reason else ''}"


def read_reply(reply: Reply, tries: int) -> ToolResult:
    """Return what an answer means. A status of success has the body as its text."""
    try:
        text = reply.body.decode()
    except UnicodeDecodeError:
        text = _NUL
    if _NUL in text:
        return failed(_NO_TEXT, status=reply.status, tries=tries)
    if 200 <= reply.status < 300:
        return ToolResult(text, status=reply.status, tries=tries)
    shown = f": {text[:MOST_SHOWN]}" if text.strip() else ""
    return failed(f"the tool answered with the status {reply.status}{shown}", status=reply.status, tries=tries)


def read_mcp_result(result: Mapping[str, Any], most_bytes: int, tries: int) -> ToolResult:
    """Return what the result of a call over MCP means. Its texts are joined; what is no text is named in brackets."""
    content = result.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    text = "\n".join(_text_of(block) for block in blocks)
    if not text and result.get("structuredContent") is not None:
        text = json.dumps(result["structuredContent"], ensure_ascii=False)
    if _NUL in text:
        return failed(_NO_TEXT, status=200, tries=tries)
    if len(text.encode()) > most_bytes:
        return failed(f"the tool's answer is longer than {most_bytes} bytes", status=200, tries=tries)
    return (
        failed(text, status=200, tries=tries) if result.get("isError") is True else ToolResult(text, False, 200, tries)
    )


def _text_of(block: Mapping[str, Any]) -> str:
    resource = block.get("resource")
    for told in (block.get("text"), resource.get("text") if isinstance(resource, dict) else None):
        if isinstance(told, str):
            return told
    return f"[{block.get('type', 'content')} {block.get('uri') or block.get('mimeType') or ''}".rstrip() + "]"
