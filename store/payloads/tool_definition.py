"""What a tool is that the server calls: an HTTP address of the tenant, with the schema of its arguments."""

import re
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator

from store.payloads.conversation import FunctionSpec
from store.payloads.job_payload import WebhookUrl
from store.payloads.strict_model import Strict

TOOL_NAME: Final = r"^[A-Za-z0-9_-]{1,64}$"
"""As of a function, so that a model can call it."""

LONGEST_CALL_MS: Final = 60_000
MOST_RESULT_BYTES: Final = 262_144
MOST_HEADERS: Final = 20

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,4094}[\x21-\x7e])?")
# What the call itself decides.
_OUR_HEADERS = frozenset(
    {
        "accept", "accept-encoding", "connection", "content-length", "content-type", "expect", "host",
        "idempotency-key", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip


class HttpTool(Strict):
    """A tool that is called by ``POST`` to a URL. Its headers are secrets: no answer of the API shows their values."""

    type: Literal["http"] = Field("http", description="how it is called")
    description: Annotated[str, StringConstraints(max_length=4096)] = Field(
        "", description="what it does, for the model"
    )
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        description="JSON Schema of its arguments, an object; a call that does not match is not made",
    )
    url: WebhookUrl = Field(description="https, to a public address")
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

    @field_validator("parameters")
    @classmethod
    def _are_of_a_function(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            FunctionSpec(name="tool", parameters=parameters)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return parameters

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

    @property
    def as_function(self) -> dict[str, Any]:
        """What a model is told of it, without its name."""
        return {"description": self.description, "parameters": self.parameters}
