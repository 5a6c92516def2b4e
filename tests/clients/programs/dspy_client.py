"""DSPy: signatures over chat and JSON adapters, tools, streams."""

import asyncio
import os
from contextlib import suppress

import dspy
from dspy.streaming import StreamListener, StreamResponse, streamify
from dspy.utils.exceptions import AdapterParseError
from pydantic import BaseModel, Field
from reporting import BASE_URL, CAPITAL, MODEL, feature, main


def model(name: str = MODEL, **more: object) -> dspy.LM:
    known = {"temperature": 0, "max_tokens": 150, "cache": False, "num_retries": 0}
    return dspy.LM(f"openai/{name}", api_base=BASE_URL, api_key=os.environ["OPENAI_API_KEY"], **known | more)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, lt=100_000_000)


class Describe(dspy.Signature):
    """Describe the city."""

    question: str = dspy.InputField()
    city: City = dspy.OutputField()


def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"It rains in {city}."


@feature("chat")
def chat() -> None:
    for kind in ("chat", "text"):
        (text,) = model(model_type=kind)(CAPITAL if kind == "chat" else "The capital of France is")
        assert text, kind
    (found,) = model(model_type="responses")(CAPITAL)
    assert found


@feature("structured output")
def structured() -> None:
    # LiteLLM does not know the model, so DSPy asks for any JSON object and describes its form in words.
    with dspy.context(lm=model(), adapter=dspy.JSONAdapter()), suppress(AdapterParseError):
        assert isinstance(dspy.Predict(Describe)(question="Tell me about Paris.").city, City)


@feature("chain of thought")
def thought() -> None:
    # The adapter asks in words, and then with a schema if the model does not obey.
    with dspy.context(lm=model()), suppress(AdapterParseError):
        assert dspy.ChainOfThought("question -> answer")(question=CAPITAL).answer is not None


@feature("tools")
def tools() -> None:
    with (
        dspy.context(lm=model(), adapter=dspy.JSONAdapter(use_native_function_calling=True)),
        suppress(AdapterParseError),
    ):
        dspy.ReAct("question -> answer", tools=[weather], max_iters=2)(question="How is the weather in Paris?")


@feature("chat, streamed")
async def streamed() -> None:
    with dspy.context(lm=model(), adapter=dspy.JSONAdapter()):
        program = streamify(
            dspy.Predict("question -> answer"), stream_listeners=[StreamListener(signature_field_name="answer")]
        )
        with suppress(AdapterParseError):
            pieces = [piece async for piece in program(question=CAPITAL)]
            assert any(isinstance(piece, StreamResponse) for piece in pieces), pieces


@feature("error: unknown model")
def unknown_model() -> None:
    try:
        model("nobody")("hi")
    except Exception as error:
        assert "nobody" in str(error), error
        assert "NotFound" in type(error).__name__ or "NotFound" in repr(error.__cause__), repr(error)
    else:
        raise AssertionError("no error")


main(asyncio.run)
