"""pydantic-ai: agents with tools and typed outputs."""

import asyncio
from contextlib import suppress

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError, UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.usage import UsageLimits
from reporting import CAPITAL, MODEL, feature, main

MODELS = {"chat": OpenAIChatModel(MODEL), "responses": OpenAIResponsesModel(MODEL)}
SHORT = {"temperature": 0.0, "max_tokens": 60}
LONG = {"temperature": 0.0, "max_tokens": 150}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, lt=100_000_000)


@feature("agent")
async def agent() -> None:
    for model in MODELS.values():
        result = await Agent(model, instructions="Be brief.").run(CAPITAL, model_settings=SHORT)
        assert "Paris" in result.output
        assert result.usage.output_tokens > 0


@feature("agent, streamed")
async def streamed() -> None:
    for model in MODELS.values():
        async with Agent(model).run_stream(CAPITAL, model_settings=SHORT) as result:
            # Without a pause that joins what arrives within a tenth of a second: the whole short answer.
            texts = [text async for text in result.stream_text(delta=True, debounce_by=None)]
        assert "Paris" in "".join(texts)
        assert len(texts) > 1


@feature("structured output")
async def structured() -> None:
    for name, model in MODELS.items():
        for kind in (NativeOutput, ToolOutput):
            result = await Agent(model, output_type=kind(City)).run("Tell me about Paris.", model_settings=LONG)
            assert isinstance(result.output, City), (name, kind)


@feature("JSON mode")
async def prompted() -> None:
    # The model is asked in words, and asked again if it does not obey.
    for model in MODELS.values():
        helper = Agent(model, output_type=PromptedOutput(City), retries=1)
        with suppress(UnexpectedModelBehavior):  # so small a model may write something else
            await helper.run("Tell me about Paris.", model_settings=LONG)


@feature("agent with tools")
async def tools() -> None:
    for model in MODELS.values():
        helper = Agent(model, output_type=[City], retries=2)
        called: list[str] = []

        @helper.tool_plain
        def weather(city: str, called: list[str] = called) -> str:
            """Return the weather in a city."""
            called.append(city)
            return "It rains."

        with suppress(UnexpectedModelBehavior, UsageLimitExceeded):  # so small a model may call for ever
            await helper.run(
                "How is the weather in Paris?", model_settings=LONG, usage_limits=UsageLimits(request_limit=3)
            )


@feature("history")
async def history() -> None:
    for model in MODELS.values():
        helper = Agent(model)
        first = await helper.run(CAPITAL, model_settings=SHORT)
        again = await helper.run("And of Italy?", message_history=first.all_messages(), model_settings=SHORT)
        assert again.usage.input_tokens > first.usage.input_tokens


@feature("error: unknown model")
async def unknown_model() -> None:
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        try:
            await Agent(kind("nobody")).run(CAPITAL)
        except ModelHTTPError as error:
            assert error.status_code == 404
        else:
            raise AssertionError("no ModelHTTPError")


main(asyncio.run)
