"""LangChain's ChatOpenAI."""

import asyncio
import itertools
import re

import openai
from adder import ANSWER, SUM, adder
from handbook import FILE, QUESTION, WARRANTY, new_handbook
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field
from reporting import (
    CAPITAL,
    CUTTING_URL,
    ENCODER,
    LONG_ANSWER,
    MODEL,
    TOO_LONG,
    assert_one_job_succeeded,
    feature,
    main,
    new_run,
    wait_until_cancelled,
)

model = ChatOpenAI(model=MODEL, temperature=0, max_tokens=24, max_retries=0, stream_usage=True)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=40)
    inhabitants: int = Field(ge=0, lt=100_000_000)


@tool
def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"It rains in {city}."


@feature("chat")
def invoke() -> None:
    answer = model.invoke([SystemMessage("You are a helpful assistant."), HumanMessage(CAPITAL)])
    assert "Paris" in answer.content
    assert answer.usage_metadata["total_tokens"] > 0
    assert answer.response_metadata["finish_reason"] in ("stop", "length")


@feature("chat, streamed")
def stream() -> None:
    chunks = list(model.stream(CAPITAL))
    whole = model.invoke(CAPITAL)
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert len(chunks) > 2
    assert [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata] == [whole.usage_metadata]


@feature("async and concurrent")
async def batch() -> None:
    assert len({answer.content for answer in model.batch([CAPITAL] * 4)}) == 1
    answers = await model.abatch([CAPITAL] * 4)
    assert "Paris" in (await model.ainvoke(CAPITAL)).content == answers[0].content
    assert "Paris" in "".join([chunk.content async for chunk in model.astream(CAPITAL)])


@feature("chain")
def chain() -> None:
    prompt = ChatPromptTemplate.from_messages([("user", "What is the capital of {country}?")])
    assert "Paris" in (prompt | model | StrOutputParser()).invoke({"country": "France"})


@feature("embeddings")
def embeddings() -> None:
    # Otherwise it counts tokens with a tokenizer of OpenAI's models, which it would fetch.
    encoder = OpenAIEmbeddings(model=ENCODER, check_embedding_ctx_length=False)
    assert [len(vector) for vector in encoder.embed_documents(["a mill", "a river"])] == [384, 384]
    assert len(encoder.embed_query("a mill")) == 384


@feature("responses")
def responses() -> None:
    responding = ChatOpenAI(model=MODEL, temperature=0, max_tokens=24, max_retries=0, use_responses_api=True)
    whole = responding.invoke(CAPITAL)
    assert "Paris" in whole.text
    assert "".join(chunk.text for chunk in responding.stream(CAPITAL)) == whole.text
    again = responding.invoke("And of Italy?", previous_response_id=whole.response_metadata["id"])
    assert again.usage_metadata["input_tokens"] > whole.usage_metadata["total_tokens"]


def searching(store: str, **more: object) -> ChatOpenAI:
    """Return the model with the tool that searches in the store."""
    responding = ChatOpenAI(model=MODEL, temperature=0, max_tokens=48, max_retries=0, use_responses_api=True, **more)
    return responding.bind_tools([{"type": "file_search", "vector_store_ids": [store], "max_num_results": 1}])


def cited(answer: AIMessage) -> list[str]:
    """Return the names of the files that the answer cites."""
    return [one["filename"] for block in answer.content if block["type"] == "text" for one in block["annotations"]]


@feature("search in files")
def file_search() -> None:
    store = new_handbook()
    with_results = searching(store, include=["file_search_call.results"])
    answer = with_results.invoke(QUESTION)
    (search,) = [block for block in answer.content if block["type"] == "file_search_call"]
    assert [one["text"] for one in search["results"]] == [WARRANTY], search
    assert "seven" in answer.text and cited(answer) == [FILE], answer
    whole = searching(store).invoke([HumanMessage(QUESTION), answer, HumanMessage("When is the mill open?")])
    assert cited(whole) == ["opening.txt"], whole
    again = searching(store).invoke(QUESTION, previous_response_id=whole.response_metadata["id"])
    assert cited(again) == [FILE], again


@feature("search in files, streamed")
def file_search_stream() -> None:
    bound = searching(new_handbook())
    joined = None
    for chunk in bound.stream(QUESTION):
        joined = chunk if joined is None else joined + chunk
    assert "seven" in joined.text and cited(joined) == [FILE], joined
    assert [block["type"] for block in joined.content] == ["file_search_call", "text"], joined.content
    again = bound.invoke([HumanMessage(QUESTION), joined, HumanMessage("When is the mill open?")])
    assert cited(again) == ["opening.txt"], again


def adding(tool_choice: str = "required", **more: object) -> ChatOpenAI:
    """Return the model with the server of MCP, whose tool it calls once at most."""
    responding = ChatOpenAI(model=MODEL, temperature=0, max_tokens=48, max_retries=0, use_responses_api=True)
    return responding.bind_tools([adder(**more)], tool_choice=tool_choice, max_tool_calls=1)


def kinds(answer: AIMessage) -> list[str]:
    return [block["type"] for block in answer.content]


@feature("server of MCP")
def mcp() -> None:
    bound = adding(require_approval="never")
    answer = bound.invoke(SUM)
    assert kinds(answer) == ["mcp_list_tools", "mcp_call", "text"], answer
    called = answer.content[1]
    assert (called["name"], called["server_label"]) == ("add", "adder") and re.fullmatch(ANSWER, called["output"]), (
        called
    )
    joined = None
    for chunk in bound.stream(SUM):
        joined = chunk if joined is None else joined + chunk
    assert kinds(joined) == ["mcp_list_tools", "mcp_call", "text"] and joined.text, joined
    again = adding(require_approval="never").invoke([HumanMessage(SUM), answer, HumanMessage("And one and one?")])
    assert kinds(again)[-2:] == ["mcp_call", "text"], again


@feature("server of MCP, with approval")
def mcp_approval() -> None:
    for approve in (True, False):
        asking = adding(require_approval="always").invoke(SUM)
        (request,) = [block for block in asking.content if block["type"] == "mcp_approval_request"]
        given = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": approve}
        going_on = adding("auto", require_approval="always")
        answer = going_on.invoke([HumanMessage([given])], previous_response_id=asking.response_metadata["id"])
        (called,) = [block for block in answer.content if block["type"] == "mcp_call"]
        # So small a model may ask for the same call again.
        assert called["approval_request_id"] == request["id"] and bool(called.get("error")) is not approve, answer
        assert not approve or re.fullmatch(ANSWER, called["output"]), answer


@feature("retriever in a chain")
def retriever() -> None:
    encoder = OpenAIEmbeddings(model=ENCODER, check_embedding_ctx_length=False)
    texts = InMemoryVectorStore.from_texts([WARRANTY, "The mill is open from Tuesday to Saturday."], encoder)
    prompt = ChatPromptTemplate.from_messages([("user", "{context}\n\n{question}")])
    best = texts.as_retriever(search_kwargs={"k": 1}) | (lambda found: found[0].page_content)
    answer = ({"context": best, "question": RunnablePassthrough()} | prompt | model).invoke(QUESTION)
    assert "seven" in answer.content, answer


@feature("leaving a stream cancels")
def leaving() -> None:
    for num_chunks in (2, 7):
        run = new_run()
        chunks = ChatOpenAI(model=MODEL, max_tokens=1000, extra_body={"metadata": run}).stream(LONG_ANSWER)
        assert len(list(itertools.islice(chunks, num_chunks))) == num_chunks
        chunks.close()
        wait_until_cancelled(run)


@feature("retry of a lost answer")
def retry() -> None:
    run = new_run()
    retrying = ChatOpenAI(
        model=MODEL, temperature=0, max_tokens=24, max_retries=2, base_url=CUTTING_URL, extra_body={"metadata": run}
    )
    assert "Paris" in retrying.invoke(CAPITAL).content
    assert_one_job_succeeded(run)


@feature("error: bad key")
def bad_key() -> None:
    try:
        ChatOpenAI(model=MODEL, api_key="hr_nobody_nothing", max_retries=0).invoke(CAPITAL)
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("no AuthenticationError")


@feature("error: unknown model")
def unknown_model() -> None:
    try:
        ChatOpenAI(model="nobody", max_retries=0).invoke(CAPITAL)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
    else:
        raise AssertionError("no NotFoundError")


@feature("error: prompt too long")
def too_long() -> None:
    try:
        model.invoke(TOO_LONG)
    except ContextOverflowError as error:
        assert "maximum context length" in str(error)
    else:
        raise AssertionError("no ContextOverflowError")


@feature("structured output")
def structured() -> None:
    talkative = ChatOpenAI(model=MODEL, temperature=0, max_tokens=200, max_retries=0)
    for method in ("json_schema", "function_calling"):
        city = talkative.with_structured_output(City, method=method).invoke("Tell me about Paris as JSON.")
        assert isinstance(city, City), (method, city)


@feature("structured output, streamed")
def structured_stream() -> None:
    talkative = ChatOpenAI(model=MODEL, temperature=0, max_tokens=200, max_retries=0)
    *_, city = talkative.with_structured_output(City).stream("Tell me about Paris as JSON.")
    assert isinstance(city, City), city


@feature("tools")
def tools() -> None:
    talkative = ChatOpenAI(model=MODEL, temperature=0, max_tokens=100, max_retries=0)
    question = HumanMessage("How is the weather in Paris?")
    call = talkative.bind_tools([weather], tool_choice="weather").invoke([question])
    (wanted,) = call.tool_calls
    assert (wanted["name"], set(wanted["args"])) == ("weather", {"city"})
    result = weather.invoke(wanted)
    assert isinstance(result, ToolMessage)
    # So small a model would call again.
    assert talkative.bind_tools([weather], tool_choice="none").invoke([question, call, result]).content


@feature("tools, streamed")
def tools_stream() -> None:
    talkative = ChatOpenAI(model=MODEL, temperature=0, max_tokens=100, max_retries=0)
    whole = None
    for chunk in talkative.bind_tools([weather], tool_choice="weather").stream("How is the weather in Paris?"):
        whole = chunk if whole is None else whole + chunk
    assert [call["name"] for call in whole.tool_calls] == ["weather"], whole


main(asyncio.run)
