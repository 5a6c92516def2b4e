"""Outlines on an OpenAI server, and on one that speaks vLLM's extensions."""

import asyncio
from enum import Enum
from typing import Literal

import openai
import outlines
from outlines.types import CFG, JsonSchema, Regex
from pydantic import BaseModel, ConfigDict, Field
from reporting import CAPITAL, MODEL, feature, main

client = openai.OpenAI(max_retries=0)
by_openai = outlines.from_openai(client, MODEL)
by_vllm = outlines.from_vllm(client, MODEL)


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")  # otherwise so small a model goes on with fields of its own

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, lt=100_000_000)


class Size(Enum):
    """The size of a city."""

    SMALL = "small"
    LARGE = "large"


@feature("chat")
def chat() -> None:
    for model in (by_openai, by_vllm):
        assert "Paris" in model(CAPITAL, temperature=0, max_tokens=24)


@feature("chat, streamed")
def streamed() -> None:
    for model in (by_openai, by_vllm):
        assert "Paris" in "".join(model.stream(CAPITAL, temperature=0, max_tokens=24))


@feature("structured output")
def structured() -> None:
    for model in (by_openai, by_vllm):
        City.model_validate_json(model("Tell me about Paris.", City, temperature=0, max_tokens=120))
    schema = JsonSchema('{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}')
    assert "a" in by_vllm("Is Paris large?", schema, temperature=0, max_tokens=60)


@feature("regex and choice")
def choice() -> None:
    assert by_vllm("Is Paris large?", Literal["yes", "no"], max_tokens=8) in ("yes", "no")
    assert by_vllm("How large is Paris?", Size, max_tokens=8) in ("small", "large")
    assert len(by_vllm("The year?", Regex(r"[0-9]{4}"), max_tokens=16)) == 4


@feature("grammar")
def grammar() -> None:
    assert by_vllm("yes or no?", CFG('start: "yes" | "no"'), max_tokens=8) in ("yes", "no")


@feature("error: unknown model")
def unknown_model() -> None:
    try:
        outlines.from_openai(client, "nobody")(CAPITAL)
    except Exception as error:
        assert "nobody" in str(error) or isinstance(error.__cause__, openai.NotFoundError), repr(error)
    else:
        raise AssertionError("no error")


main(asyncio.run)
