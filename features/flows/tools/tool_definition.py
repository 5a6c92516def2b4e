"""What a tool is that the server calls: an HTTP address with the schema of its arguments, or a server of MCP."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError, field_validator, model_validator

from headrace.store.mcp_commands import COMMAND_NAME
from headrace.store.payloads.conversation import FunctionName, FunctionSpec
from headrace.store.payloads.job_payload import WebhookUrl
from headrace.store.payloads.server_tools import SEPARATOR
from headrace.store.payloads.strict_model import Strict
from headrace.store.payloads.tool_approval import RequireApproval, Rule, needs_approval

TOOL_NAME: Final = r"^[A-Za-z0-9_-]{1,64}$"
"""As of a function, so that a model can call it."""

LONGEST_CALL_MS: Final = 60_000
MOST_RESULT_BYTES: Final = 262_144
MOST_HEADERS: Final = 20

MOST_SERVER_TOOLS: Final = 64
MOST_TOLD_CHARS: Final = 4096
"""Of a description. A longer one of a server of MCP is cut."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,4094}[\x21-\x7e])?")
# What the call itself decides.
_OUR_HEADERS = frozenset(
    {
        "accept", "accept-encoding", "connection", "content-length", "content-type", "expect", "host",
        "idempotency-key", "mcp-protocol-version", "mcp-session-id", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip


Description = Annotated[str, StringConstraints(max_length=MOST_TOLD_CHARS)]
Parameters = dict[str, Any]


def _checked_parameters(parameters: Parameters) -> Parameters:
    try:
        FunctionSpec(name="tool", parameters=parameters)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    return parameters


def _is_never(rule: object) -> bool:
    """True for the default, which is not stored: a release without the field can read the definition."""
    return rule == "never"


def _is_none(command: object) -> bool:
    """True for a server that has a URL: as above."""
    return command is None


class ToolEndpoint(Strict):
    """How a tool is called, and the bounds of a call. Its headers are secrets: no answer shows their values."""

    headers: Annotated[dict[str, str], Field(max_length=MOST_HEADERS)] = Field(
        default_factory=dict, description="sent with each call, for example `Authorization`; stored encrypted"
    )
    timeout_ms: int = Field(
        10_000, strict=True, ge=100, le=LONGEST_CALL_MS, description="deadline of a call with all its tries"
    )
    max_attempts: int = Field(
        2, strict=True, ge=1, le=5, description="most tries of a call, if no answer came or one that asks to try again"
    )
    max_result_bytes: int = Field(
        16_384, strict=True, ge=1, le=MOST_RESULT_BYTES, description="a longer answer is an error for the model"
    )

    @field_validator("headers")
    @classmethod
    def _may_be_sent(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError("the name of a header has letters, digits and `-`")
            if name.lower() in _OUR_HEADERS:
                raise ValueError(f"the header {name} is set by the call itself: leave it out")
            if not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"the value of the header {name} is 1 to 4096 visible ASCII characters")
        if len({name.lower() for name in headers}) < len(headers):
            raise ValueError("a header is named twice")
        return headers


class HttpTool(ToolEndpoint):
    """A tool that is called by ``POST`` to a URL, with its arguments as the body."""

    type: Literal["http"] = Field("http", description="how it is called")
    url: WebhookUrl = Field(description="https, to a public address")
    description: Description = Field("", description="what it does, for the model")
    parameters: Parameters = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        description="JSON Schema of its arguments, an object; a call that does not match is not made",
    )
    require_approval: Rule = Field(
        "never", exclude_if=_is_never, description="`always`: each call waits until it is approved"
    )

    _are_of_a_function = field_validator("parameters")(_checked_parameters)

    def functions(self, name: str) -> dict[str, dict[str, Any]]:
        """Return what a model is told of it, by the name that it calls."""
        return {name: {"description": self.description, "parameters": self.parameters}}

    def needs_approval(self, _function: str) -> bool:
        """Return True if each call waits until it is approved."""
        return self.require_approval == "always"


class McpEndpoint(ToolEndpoint):
    """A server that speaks MCP: over streamable HTTP, or a command of the operator's over stdio. It tells its tools."""

    type: Literal["mcp"] = Field(description="how it is called")
    url: WebhookUrl | None = Field(None, description="https, to a public address; a server has this or `command`")
    command: Annotated[str, StringConstraints(pattern=COMMAND_NAME)] | None = Field(
        None,
        exclude_if=_is_none,
        description="the name of a command of the operator's, which is started for each call; it has no `headers`",
    )
    only: (
        Annotated[
            tuple[Annotated[str, StringConstraints(min_length=1, max_length=128)], ...],
            Field(min_length=1, max_length=MOST_SERVER_TOOLS),
        ]
        | None
    ) = Field(None, description="the names of the tools to take, as the server has them; without it all")
    require_approval: RequireApproval = Field(
        "never",
        exclude_if=_is_never,
        description="which calls wait until they are approved: `always`, `never`, or by the server's own names: "
        '`{"always": {"tool_names": [...]}}`',
    )

    @model_validator(mode="after")
    def _has_one_way(self) -> Self:
        if (self.url is None) == (self.command is None):
            raise ValueError("a server has either `url` or `command`: give one of them")
        if self.command is not None and self.headers:
            raise ValueError("`headers` go with `url`: a command gets none")
        return self


class McpTool(Strict):
    """A tool of such a server, as the server told it."""

    name: str
    description: Description = ""
    parameters: Parameters

    _are_of_a_function = field_validator("parameters")(_checked_parameters)


class McpServer(McpEndpoint):
    """A server with its tools, by the second part of the name by which a model calls them."""

    tools: dict[FunctionName, McpTool]

    def functions(self, name: str) -> dict[str, dict[str, Any]]:
        """Return what a model is told of its tools, by the names that it calls."""
        return {
            f"{name}{SEPARATOR}{short}": {"description": tool.description, "parameters": tool.parameters}
            for short, tool in self.tools.items()
        }

    def needs_approval(self, function: str) -> bool:
        """Return True if calls of this function wait until they are approved."""
        tool = self.tools.get(function.partition(SEPARATOR)[2])
        return needs_approval(self.require_approval, *(() if tool is None else (tool.name,)))


Definition = HttpTool | McpServer
_DEFINITION: Final[TypeAdapter[Definition]] = TypeAdapter(Annotated[Definition, Field(discriminator="type")])


def read_definition(stored: Mapping[str, Any]) -> Definition:
    """Return a stored definition. Raises ValidationError."""
    return _DEFINITION.validate_python(stored)
