"""LlamaIndex on an OpenAI-like server: chat, streams, function calls, structured prediction."""

import asyncio

import openai
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field
from reporting import BASE_URL, CAPITAL, MODEL, feature, main


def model(name: str = MODEL, **more: object) -> OpenAILike:
    known = {"temperature": 0, "max_tokens": 80, "max_retries": 0, "is_function_calling_model": True}
    return OpenAILike(model=name, api_base=BASE_URL, is_chat_model=True, context_window=8192, **known | more)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, lt=100_000_000)


def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"It rains in {city}."


TOOL = FunctionTool.from_defaults(weather)


@feature("chat")
def chat() -> None:
    assert "Paris" in model().chat([ChatMessage(role="user", content=CAPITAL)]).message.content
    assert "Paris" in model().complete(CAPITAL).text


@feature("text completion")
def completion() -> None:
    plain = OpenAILike(model=MODEL, api_base=BASE_URL, is_chat_model=False, max_tokens=8, temperature=0)
    assert plain.complete("The capital of France is").text
    assert "".join(piece.delta for piece in plain.stream_complete("The capital of France is"))


@feature("chat, streamed")
async def streamed() -> None:
    question = [ChatMessage(role="user", content=CAPITAL)]
    assert "Paris" in "".join(piece.delta for piece in model().stream_chat(question))
    assert "Paris" in "".join([piece.delta async for piece in await model().astream_chat(question)])


@feature("tools")
def tools() -> None:
    asked = model().chat_with_tools([TOOL], user_msg="How is the weather in Paris?", tool_required=True)
    calls = model().get_tool_calls_from_response(asked)
    assert [call.tool_name for call in calls] == ["weather"]


@feature("structured output")
def structured() -> None:
    for more in ({"should_use_structured_outputs": True}, {}):
        found = model(**more).structured_predict(City, PromptTemplate("Tell me about Paris."))
        assert isinstance(found, City), found


@feature("agent with tools")
async def agent() -> None:
    helper = FunctionAgent(tools=[TOOL], llm=model(), system_prompt="Be brief.")
    try:
        await helper.run("How is the weather in Paris?", max_iterations=4)
    except Exception as error:
        assert type(error).__name__ == "WorkflowRuntimeError", error  # so small a model may call for ever


@feature("error: unknown model")
def unknown_model() -> None:
    try:
        model("nobody").chat([ChatMessage(role="user", content="hi")])
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
    else:
        raise AssertionError("no NotFoundError")


main(asyncio.run)
