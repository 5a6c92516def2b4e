"""OpenAI's Agents SDK for Python: an agent, its tools, handoffs and output types, over both APIs."""

import asyncio
from contextlib import suppress

import openai
from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    handoff,
    set_tracing_disabled,
)
from pydantic import BaseModel, Field
from reporting import CAPITAL, MODEL, feature, main

set_tracing_disabled(True)
client = openai.AsyncOpenAI(max_retries=0)
MODELS = {
    "chat": OpenAIChatCompletionsModel(MODEL, client),
    "responses": OpenAIResponsesModel(MODEL, client),
}
SHORT = ModelSettings(temperature=0, max_tokens=60)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, lt=100_000_000)


called: list[str] = []


@function_tool
def weather(city: str) -> str:
    """Return the weather in a city."""
    called.append(city)
    return "It rains."


@feature("agent")
async def agent() -> None:
    for model in MODELS.values():
        result = await Runner.run(Agent(name="guide", model=model, model_settings=SHORT), CAPITAL)
        assert "Paris" in result.final_output, result.final_output
        assert result.context_wrapper.usage.total_tokens > 0


@feature("agent, streamed")
async def streamed() -> None:
    for model in MODELS.values():
        result = Runner.run_streamed(Agent(name="guide", model=model, model_settings=SHORT), CAPITAL)
        texts = [event.data.delta async for event in result.stream_events() if is_text(event)]
        assert "".join(texts) == result.final_output, texts
        assert len(texts) > 2


def is_text(event: object) -> bool:
    return event.type == "raw_response_event" and event.data.type == "response.output_text.delta"


@feature("agent with tools")
async def tools() -> None:
    for name, model in MODELS.items():
        called.clear()
        settings = ModelSettings(temperature=0, max_tokens=60, tool_choice="required")
        helper = Agent(name="guide", instructions="Be brief.", model=model, tools=[weather], model_settings=settings)
        with suppress(MaxTurnsExceeded):  # so small a model calls again
            await Runner.run(helper, "How is the weather in Paris?", max_turns=2)
        assert called, name


@feature("agent with tools, streamed")
async def tools_streamed() -> None:
    for name, model in MODELS.items():
        called.clear()
        settings = ModelSettings(temperature=0, max_tokens=60, tool_choice="weather")
        helper = Agent(name="guide", model=model, tools=[weather], model_settings=settings)
        result = Runner.run_streamed(helper, "How is the weather in Paris?", max_turns=2)
        kinds: list[str] = []
        with suppress(MaxTurnsExceeded):  # so small a model calls again
            async for event in result.stream_events():
                kinds += [event.name] if event.type == "run_item_stream_event" else []
        assert kinds[:2] == ["tool_called", "tool_output"], (name, kinds)


@feature("agent with an output type")
async def output_type() -> None:
    for name, model in MODELS.items():
        settings = ModelSettings(temperature=0, max_tokens=120)
        helper = Agent(name="guide", model=model, output_type=City, model_settings=settings)
        result = await Runner.run(helper, "Tell me about Paris.")
        assert isinstance(result.final_output, City), name


@feature("agent with an output type and tools")
async def output_and_tools() -> None:
    for name, model in MODELS.items():
        settings = ModelSettings(temperature=0, max_tokens=120)
        helper = Agent(name="guide", model=model, output_type=City, tools=[weather], model_settings=settings)
        # So small a model calls again, or goes on up to the token limit.
        with suppress(MaxTurnsExceeded, ModelBehaviorError):
            result = await Runner.run(helper, "Tell me about Paris.", max_turns=2)
            assert isinstance(result.final_output, City), name


@feature("handoff")
async def handoffs() -> None:
    for name, model in MODELS.items():
        poet = Agent(name="poet", model=model, model_settings=SHORT)
        settings = ModelSettings(temperature=0, max_tokens=60, tool_choice="transfer_to_poet")
        triage = Agent(name="triage", model=model, handoffs=[handoff(poet)], model_settings=settings)
        result = await Runner.run(triage, "Write a line about rain.", max_turns=4)
        assert result.last_agent is poet, name


@feature("session")
async def session() -> None:
    for name, model in MODELS.items():
        kept = SQLiteSession(f"session-{name}")
        helper = Agent(name="guide", model=model, model_settings=SHORT)
        await Runner.run(helper, CAPITAL, session=kept)
        again = await Runner.run(helper, "And of Italy?", session=kept)
        assert len(again.to_input_list()) >= 3, name


@feature("error: unknown model")
async def unknown_model() -> None:
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        try:
            await Runner.run(Agent(name="guide", model=kind("nobody", client)), CAPITAL)
        except openai.NotFoundError as error:
            assert error.code == "model_not_found"
        else:
            raise AssertionError("no NotFoundError")


main(asyncio.run)
