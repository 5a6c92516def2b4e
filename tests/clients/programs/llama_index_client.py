"""LlamaIndex on an OpenAI-like server: chat, streams, function calls, structured prediction."""

import asyncio
import re

import openai
from adder import ANSWER, SUM, adder
from handbook import FILE, OPENING, QUESTION, WARRANTY, new_handbook
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field
from reporting import BASE_URL, CAPITAL, ENCODER, MODEL, feature, main


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


def encoder() -> OpenAIEmbedding:
    # `model` takes names of OpenAI's models alone.
    return OpenAIEmbedding(model_name=ENCODER, api_base=BASE_URL)


@feature("embeddings")
async def embeddings() -> None:
    vectors = encoder().get_text_embedding_batch([WARRANTY, OPENING])
    assert [len(vector) for vector in [*vectors, await encoder().aget_query_embedding(QUESTION)]] == [384] * 3


@feature("index and query engine")
def query_engine() -> None:
    documents = [Document(text=WARRANTY), Document(text=OPENING)]
    index = VectorStoreIndex.from_documents(documents, embed_model=encoder())
    answer = index.as_query_engine(llm=model(), similarity_top_k=1).query(QUESTION)
    assert "seven" in answer.response and [node.text for node in answer.source_nodes] == [WARRANTY], answer


def responding(tool: dict[str, object], **more: object) -> OpenAIResponses:
    """Return the model of the Responses API with this tool."""
    known = {"temperature": 0, "max_output_tokens": 48, "max_retries": 0, "context_window": 8192}
    return OpenAIResponses(model=MODEL, api_base=BASE_URL, built_in_tools=[tool], **known | more)


def searching(store: str, **more: object) -> OpenAIResponses:
    """Return the model of the Responses API with the tool that searches in the store."""
    return responding({"type": "file_search", "vector_store_ids": [store], "max_num_results": 1}, **more)


@feature("search in files")
async def file_search() -> None:
    asked = [ChatMessage(role="user", content=QUESTION)]
    following = searching(new_handbook(), include=["file_search_call.results"], track_previous_responses=True)
    for answer in (following.chat(asked), await following.achat(asked)):
        (search,) = answer.additional_kwargs["built_in_tool_calls"]
        assert [one.text for one in search.results] == [WARRANTY], search
        assert [one.filename for one in answer.additional_kwargs["annotations"]] == [FILE], answer
        assert "seven" in answer.message.content, answer


@feature("search in files, streamed")
async def file_search_stream() -> None:
    model = searching(new_handbook())
    asked = [ChatMessage(role="user", content=QUESTION)]
    for pieces in ([*model.stream_chat(asked)], [piece async for piece in await model.astream_chat(asked)]):
        assert "seven" in "".join(piece.delta for piece in pieces)
        told = pieces[-1].additional_kwargs
        assert [one.type for one in told["built_in_tool_calls"]] == ["response.file_search_call.completed"], told
        assert [one["filename"] for one in told["annotations"]] == [FILE], told


@feature("server of MCP")
async def mcp() -> None:
    must = {"tool_choice": "required", "max_tool_calls": 1}
    model = responding(adder(require_approval="never"), additional_kwargs=must)
    asked = [ChatMessage(role="user", content=SUM)]
    for answer in (model.chat(asked), await model.achat(asked)):
        (called,) = answer.additional_kwargs["built_in_tool_calls"]
        assert called.name == "add" and re.fullmatch(ANSWER, called.output), called
        assert answer.message.content, answer
    pieces = [*model.stream_chat(asked)]
    assert "".join(piece.delta for piece in pieces) == pieces[-1].message.content != "", pieces[-1]


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
