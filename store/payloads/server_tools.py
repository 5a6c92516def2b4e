"""The part of a request that names tools which the server calls for the model."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from headrace.store.payloads.conversation import FunctionName
from headrace.store.payloads.retrieval import Retrieval
from headrace.store.payloads.strict_model import Strict
from headrace.store.payloads.tool_approval import RequireApproval

SEPARATOR: Final = "__"
"""Between the name of a server of MCP and that of its tool, in the name by which a model calls it."""

DEFAULT_CALLS: Final = 6
MOST_NAMES: Final = 32

APPROVAL_MS: Final = 3_600_000
LONGEST_APPROVAL_MS: Final = 7 * 24 * 3_600_000


class ServerTools(Strict):
    """Tools of the registry that the model may call. The server makes the calls and lets the model go on."""

    names: Annotated[tuple[FunctionName, ...], Field(min_length=1, max_length=MOST_NAMES)] = Field(
        description="names of registered tools, of servers of MCP for all their tools, `calculator` or `file_search`"
    )
    max_tool_calls: int = Field(
        DEFAULT_CALLS, strict=True, ge=0, le=127, description="most calls of the job; then the model answers in words"
    )
    tool_choice: Literal["auto", "required"] = Field(
        "auto", description="`required`: the first answer is a call; later ones are free"
    )
    file_search: Retrieval | None = Field(
        None, description="the vector stores of the tool `file_search`, as of `retrieval`; needed if `names` has it"
    )
    require_approval: RequireApproval = Field(
        "never",
        description="which calls wait for an approval, beside those of tools that were registered so: `always`, "
        '`never`, or by name: `{"always": {"tool_names": [...]}}`',
    )
    approval_timeout_ms: int = Field(
        APPROVAL_MS,
        strict=True,
        ge=1000,
        le=LONGEST_APPROVAL_MS,
        description="a call that was not approved within this time is refused",
    )
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None, description="the model of the task `call_tool` that makes the calls; needed only if there are several"
    )

    @field_validator("names")
    @classmethod
    def _are_different(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a tool is named twice")
        return names

    @model_validator(mode="after")
    def _may_call(self) -> Self:
        if self.tool_choice == "required" and not self.max_tool_calls:
            raise ValueError("`tool_choice` `required` needs `max_tool_calls` of at least 1")
        return self

    @model_validator(mode="after")
    def _search_something(self) -> Self:
        if ("file_search" in self.names) != (self.file_search is not None):
            raise ValueError("`file_search` in `names` and the field `file_search` go together")
        return self


def server_of(name: str) -> str | None:
    """Return the name of the server of MCP in the name of a function, None if it can be no tool of one."""
    server, separator, short = name.partition(SEPARATOR)
    return server if separator and server and short else None
