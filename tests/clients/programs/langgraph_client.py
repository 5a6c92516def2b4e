"""LangGraph and LangChain's agents on ChatOpenAI."""

import asyncio
from contextlib import suppress
from typing import Annotated, TypedDict

import openai
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel, Field
from reporting import CAPITAL, MODEL, feature, main


def chat(**more: object) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, temperature=0, max_tokens=80, max_retries=0, **more)


class State(TypedDict):
    """The conversation."""

    messages: Annotated[list, add_messages]


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, lt=100_000_000)


@tool
def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"It rains in {city}."


def graph(first: str | None) -> object:
    """A graph that calls once and then answers."""

    def ask(state: State) -> State:
        has_result = any(isinstance(message, ToolMessage) for message in state["messages"])
        bound = chat().bind_tools([weather], tool_choice="none" if has_result else first)
        return {"messages": [bound.invoke(state["messages"])]}

    built = StateGraph(State)
    built.add_node("ask", ask)
    built.add_node("tools", ToolNode([weather]))
    built.add_edge(START, "ask")
    built.add_conditional_edges("ask", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    built.add_edge("tools", "ask")
    return built


@feature("agent with tools")
def tools() -> None:
    done = graph("weather").compile().invoke({"messages": [HumanMessage("How is the weather in Paris?")]})
    kinds = [message.type for message in done["messages"]]
    assert kinds == ["human", "ai", "tool", "ai"], kinds


@feature("agent with tools, streamed")
async def streamed() -> None:
    compiled = graph("weather").compile()
    question = {"messages": [HumanMessage("How is the weather in Paris?")]}
    pieces = [piece async for piece, _ in compiled.astream(question, stream_mode="messages")]
    assert any(piece.content for piece in pieces if isinstance(piece, AIMessage))


@feature("history")
def history() -> None:
    compiled = graph("none").compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    compiled.invoke({"messages": [HumanMessage(CAPITAL)]}, thread)
    done = compiled.invoke({"messages": [HumanMessage("And of Italy?")]}, thread)
    assert [message.type for message in done["messages"]] == ["human", "ai", "human", "ai"]


@feature("agent")
def prebuilt() -> None:
    for responses in (False, True):
        helper = create_agent(chat(use_responses_api=responses), [weather], system_prompt="Be brief.")
        try:
            done = helper.invoke({"messages": [HumanMessage(CAPITAL)]}, {"recursion_limit": 8})
        except GraphRecursionError:
            continue  # so small a model may call for ever
        assert done["messages"][-1].type == "ai"


@feature("agent with an output type")
def output_type() -> None:
    for responses in (False, True):
        helper = create_agent(chat(use_responses_api=responses), [], response_format=City)
        done = helper.invoke({"messages": [HumanMessage("Tell me about Paris as JSON.")]}, {"recursion_limit": 8})
        assert isinstance(done["structured_response"], City), done


@feature("agent with an output type and tools")
def output_and_tools() -> None:
    helper = create_agent(chat(), [weather], response_format=City)
    with suppress(GraphRecursionError):  # so small a model may call for ever
        helper.invoke({"messages": [HumanMessage("Tell me about Paris as JSON.")]}, {"recursion_limit": 8})


@feature("error: unknown model")
def unknown_model() -> None:
    try:
        create_agent(ChatOpenAI(model="nobody", max_retries=0), [weather]).invoke({"messages": [HumanMessage("hi")]})
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
    else:
        raise AssertionError("no NotFoundError")


main(asyncio.run)
