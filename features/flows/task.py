"""The task that calls a tool of the registry: no model runs it (``docs/server-tools.md``)."""

import json
from typing import Any, Final

from pydantic import BaseModel, Field

from headrace.features.flows.tools.tool_definition import LONGEST_CALL_MS
from headrace.store.jobs.answered_calls import CALL_TASK
from headrace.store.payloads.conversation import FunctionName
from headrace.store.payloads.tool_approval import MOST_REASON_CHARS
from headrace.store.tasks.own_task import spec_of
from headrace.tasks import Task

_CHARS_A_TOKEN = 4
_MOST_TOKENS = 16_384

_MARGIN_S = 5.0
"""A call ends itself at its own deadline; the engine ends one that does not."""


class ToolCallInput(BaseModel):
    """A call of a registered tool."""

    tool: FunctionName = Field(description="the name of a registered tool, or `calculator`")
    arguments: dict[str, Any] | str = Field(
        default_factory=dict, description="the arguments: an object, or its JSON as a text, as models write it"
    )
    refusal: str | None = Field(
        None, max_length=MOST_REASON_CHARS, description="the call was refused, for this reason: it is not made"
    )
    is_fault: bool | None = Field(None, description="true: the reason is a fault of the arguments; nobody was asked")

    @property
    def arguments_text(self) -> str:
        """The arguments as JSON."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


class ToolCallOutput(BaseModel):
    """What the call returned. A call that failed has succeeded as a job: its text says why, for the model."""

    text: str = Field(description="the body of the tool's answer; of a failed call, why it failed")
    is_error: bool = Field(description="true: the call was not made, or there was no answer with a status of success")
    status: int | None = Field(None, description="the HTTP status of the answer; null: there was none")
    tries: int = Field(0, description="how often the tool was called")


def error_text(why: str) -> str:
    """Return the result of a call that failed, for the model."""
    return f"Error: {why}"


def _count(given: ToolCallInput) -> int:
    return 1 + len(given.arguments_text) // _CHARS_A_TOKEN


CALL_TOOL: Final = spec_of(
    Task(
        name=CALL_TASK,
        input=ToolCallInput,
        output=ToolCallOutput,
        # Not loaded by this name: the worker has the caller itself.
        runner="headrace.features.flows.model:load_tool_model",
        example={"tool": "calculator", "arguments": {"expression": "2 * (3 + 4)"}},
        count_tokens=_count,
        most_tokens=_MOST_TOKENS,
        output_texts=("text",),
        is_call=True,
        call_timeout_s=LONGEST_CALL_MS / 1000 + _MARGIN_S,
        summary="Call a registered tool",
    )
)

PART = CALL_TOOL
