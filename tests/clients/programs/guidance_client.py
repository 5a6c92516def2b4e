"""guidance on a server that speaks vLLM's extensions."""

import asyncio
import os

import guidance
from guidance import assistant, gen, json, select, user
from guidance.models import OpenAI
from guidance.models.experimental import VLLMModel
from pydantic import BaseModel, ConfigDict, Field
from reporting import BASE_URL, CAPITAL, MODEL, feature, main


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")  # otherwise so small a model goes on with fields of its own

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, lt=100_000_000)


def vllm() -> VLLMModel:
    return VLLMModel(MODEL, base_url=BASE_URL, api_key=os.environ["OPENAI_API_KEY"], echo=False)


def plain() -> OpenAI:
    return OpenAI(MODEL, base_url=BASE_URL, api_key=os.environ["OPENAI_API_KEY"], echo=False)


def asked(model: object, question: str, answer: object) -> object:
    with user():
        model += question
    with assistant():
        model += answer
    return model


@feature("chat")
def chat() -> None:
    for model in (vllm(), plain()):
        assert asked(model, CAPITAL, gen("said", max_tokens=24))["said"]


@feature("regex and choice")
def choice() -> None:
    assert asked(vllm(), "Is Paris large?", select(["yes", "no"], name="said"))["said"] in ("yes", "no")
    assert len(asked(vllm(), "The year?", gen("year", regex="[0-9]{4}"))["year"]) == 4


@feature("structured output")
def structured() -> None:
    for model in (vllm(), plain()):
        City.model_validate_json(
            asked(model, "Tell me about Paris.", json("city", schema=City, max_tokens=120))["city"]
        )


@feature("grammar")
def grammar() -> None:
    @guidance(stateless=True)
    def list_of(model: object, item: object) -> object:
        return model + item + guidance.optional(", " + item)

    said = asked(vllm(), "Name colours.", "Colours: " + guidance.capture(list_of(select(["red", "blue"])), "colours"))
    assert set(said["colours"].split(", ")) <= {"red", "blue"}


@feature("error: unknown model")
def unknown_model() -> None:
    try:
        asked(VLLMModel("nobody", base_url=BASE_URL, api_key=os.environ["OPENAI_API_KEY"], echo=False), "hi", gen("x"))
    except Exception as error:
        assert "nobody" in str(error), repr(error)
    else:
        raise AssertionError("no error")


main(asyncio.run)
