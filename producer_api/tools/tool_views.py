"""Request and response models of the tools that the server calls."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from producer_api.http.views import seconds
from store.payloads.conversation import FunctionName
from store.payloads.strict_model import Strict
from store.payloads.tool_definition import HttpTool
from store.tools.tools import StoredTool

_EXAMPLE: JsonDict = {
    "description": "The weather in a city, now.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 64}},
        "required": ["city"],
    },
    "url": "https://tools.example.com/weather",
    "headers": {"Authorization": "Bearer 0123456789"},
    "timeout_ms": 5000,
}


class ToolDefinition(HttpTool):
    """A new definition of a tool; what is left out gets its default, also the headers."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [_EXAMPLE]})


class NewTool(HttpTool):
    """A tool with its name, by which requests use it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"name": "weather", **_EXAMPLE}]}
    )

    name: FunctionName = Field(description="letters, digits, `_` and `-`; a model calls the tool by it")

    @property
    def definition(self) -> HttpTool:
        """The definition without the name."""
        return HttpTool.model_validate(self.model_dump(exclude={"name"}))


class ToolObject(BaseModel):
    """A tool. The values of its headers are never shown."""

    id: str
    object: Literal["tool"] = "tool"
    name: str = Field(description="its name, by which requests use it")
    type: str = Field(description="how it is called")
    description: str = Field(description="what it does, for the model")
    parameters: dict[str, Any] = Field(description="JSON Schema of its arguments")
    url: str = Field(description="it is called by `POST` there")
    headers: list[str] = Field(description="the names of the headers that are sent with each call")
    timeout_ms: int = Field(description="deadline of a call with all its tries")
    max_attempts: int = Field(description="most tries of a call")
    max_result_bytes: int = Field(description="a longer answer is an error for the model")
    created_at: int
    updated_at: int = Field(description="Unix seconds")


class ToolList(BaseModel):
    """All of a tenant's tools."""

    object: Literal["list"] = "list"
    data: list[ToolObject]


class ToolDeleted(Strict):
    """The deleted tool."""

    id: str
    object: Literal["tool.deleted"] = "tool.deleted"
    deleted: Literal[True] = True


def tool_object(stored: StoredTool) -> ToolObject:
    """Return a tool without the values of its headers."""
    shown = stored.definition.model_dump(exclude={"headers"})
    return ToolObject(
        id=stored.id,
        name=stored.name,
        headers=sorted(stored.definition.headers),
        created_at=int(stored.created_at.timestamp()),
        updated_at=seconds(stored.updated_at) or 0,
        **shown,
    )
