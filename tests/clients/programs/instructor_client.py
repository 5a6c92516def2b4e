"""instructor: pydantic models from answers, in each of its modes."""

import asyncio
from typing import Literal

import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field
from reporting import MODEL, feature, main


class City(BaseModel):
    """A city, and nothing more: a schema that allows other properties lets a small model go on for ever."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=40)
    size: Literal["small", "large"]


ASKED = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me about the city of Paris."}],
    "temperature": 0,
    "max_tokens": 200,
    "max_retries": 0,
}


def client(mode: instructor.Mode) -> instructor.Instructor:
    """The official client, patched for a mode."""
    return instructor.from_openai(OpenAI(max_retries=0), mode=mode)


@feature("structured output")
def json_schema() -> None:
    city = client(instructor.Mode.JSON_SCHEMA).create(response_model=City, **ASKED)
    assert isinstance(city, City)


@feature("structured output, streamed")
def partial() -> None:
    *_, city = client(instructor.Mode.JSON_SCHEMA).create_partial(response_model=City, **ASKED)
    assert City.model_validate(city.model_dump()).size in ("small", "large")


@feature("tools")
def tools() -> None:
    city = client(instructor.Mode.TOOLS).create(response_model=City, **ASKED)
    assert isinstance(city, City)


@feature("async and concurrent")
async def concurrent() -> None:
    asynchronous = instructor.from_openai(AsyncOpenAI(max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
    cities = await asyncio.gather(*(asynchronous.create(response_model=City, **ASKED) for _ in range(3)))
    assert all(isinstance(city, City) for city in cities)


main(asyncio.run)
