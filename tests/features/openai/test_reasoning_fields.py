"""Reasoning in every face: asked for in its fields, and shown apart from the answer."""

from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import pytest
import redis
from anthropic import Anthropic
from openai import BadRequestError, OpenAI

from headrace.features.responses.stored_responses import job_id_of
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.registry.models import register_version
from tests.cases import some_of
from tests.features.openai.test_tools import FLAT, SAID, TOOLS, template_files
from tests.producer_api.conftest import CONTEXT_WINDOW
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer
from tests.prompts.reasoning_templates import SWITCHED
from tests.prompts.tool_templates import HERMES

QUESTION: Any = [{"role": "user", "content": "Is it warm in Oslo?"}]
THOUGHT, ANSWER = "Oslo is in the north. <b>", "No, it is cold."
WHOLE = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
SAY = Callable[[dict[str, Any]], Sequence[str]]


@pytest.fixture
def worker(db: Database, redis_client: redis.Redis) -> ScriptedWorker:
    """The worker of a model that reasons unless it is switched off, and writes calls in tags."""
    off = SWITCHED[SWITCHED.rindex("{%- if enable_thinking") :]
    register_version(
        db,
        model="thinker",
        runner="torch",
        source="thinker",
        digest="7" * 64,
        dtype="float32",
        context_window=CONTEXT_WINDOW * 8,
        files=template_files(HERMES + off, ("<think>", "</think>")),
        actor="tests",
    )
    return ScriptedWorker(db, redis_client, "thinker@1")


@pytest.fixture
def openai(openai: OpenAI, worker: ScriptedWorker) -> OpenAI:
    """The client, once the model is there."""
    return openai


def pieces(text: str) -> SAY:
    return lambda _payload: [text[start : start + 3] for start in range(0, len(text), 3)]


def input_of(db: Database, tenant: str, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = jobs.get(db, tenant, job_id).payload
    return found


def test_chat_has_it_beside_the_content_whole_and_streamed(openai: OpenAI, worker: ScriptedWorker) -> None:
    ask: Any = {"model": "thinker", "messages": QUESTION}
    with worker.serve(pieces(WHOLE)):
        message: Any = openai.chat.completions.create(**ask).choices[0].message
        deltas: list[Any] = [
            chunk.choices[0].delta for chunk in openai.chat.completions.create(**ask, stream=True) if chunk.choices
        ]
    assert (message.content, message.reasoning_content) == (ANSWER, THOUGHT)
    reasoning = [text for delta in deltas if (text := getattr(delta, "reasoning_content", None))]
    content = [delta.content for delta in deltas if delta.content]
    assert ("".join(reasoning), "".join(content)) == (THOUGHT, ANSWER)
    assert len(reasoning) > 3 < len(content)
    assert deltas[0].role == "assistant"
    assert deltas[0].content is None


def test_logprobs_are_of_the_answer_alone(openai: OpenAI, worker: ScriptedWorker) -> None:
    ask: Any = {"model": "thinker", "messages": QUESTION, "logprobs": True}
    with worker.serve(pieces(WHOLE)):
        whole = openai.chat.completions.create(**ask).choices[0].logprobs
        streamed = [
            entry
            for chunk in openai.chat.completions.create(**ask, stream=True)
            if chunk.choices and chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content or ()
        ]
    assert whole is not None
    assert whole.content is not None
    assert b"".join(bytes(entry.bytes or ()) for entry in whole.content).decode() == ANSWER
    assert len(streamed) == len(whole.content), "one token a byte"


def test_calls_follow_it_in_chat_and_natively(openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker) -> None:
    with worker.serve(pieces(f"<think>look</think>\n\n{SAID['hermes']}")):
        choice: Any = openai.chat.completions.create(model="thinker", messages=QUESTION, tools=TOOLS).choices[0]
        asked = {"model": "thinker", "input": {"messages": QUESTION, "tools": TOOLS, "reasoning": {"effort": "low"}}}
        job = api.get(f"/v1/jobs/{api.post('/v1/jobs', json=asked).json()['id']}?wait=20").json()
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert (choice.message.reasoning_content, choice.message.tool_calls[0].function.name) == ("look", "get_weather")
    output = job["output"]
    assert (output["reasoning"], output["tool_calls"][0]["function"]["name"]) == ("look", "get_weather")
    assert output["text"].startswith("<think>look")


@pytest.mark.parametrize("summary", [None, "auto"])
def test_responses_have_an_item_of_it(openai: OpenAI, worker: ScriptedWorker, summary: str | None) -> None:
    ask: Any = {"model": "thinker", "input": "Oslo?", "reasoning": {"summary": summary}}
    with worker.serve(pieces(WHOLE)):
        whole: Any = openai.responses.create(**ask)
        events: list[Any] = [*openai.responses.create(**ask, stream=True)]
        with openai.responses.stream(**ask) as stream:
            put_together: Any = stream.get_final_response()
    for response in (whole, put_together, events[-1].response):
        reasoning, message = response.output
        assert (reasoning.type, message.content[0].text) == ("reasoning", ANSWER)
        assert [part.text for part in (reasoning.summary if summary else reasoning.content)] == [THOUGHT]
    kind, part = ("reasoning_summary_text", "reasoning_summary_part") if summary else ("reasoning_text", "content_part")
    types = [event.type for event in events if event.type != f"response.{kind}.delta"]
    types = types[2 : types.index("response.output_text.delta")]
    added, done = ["response.output_item.added", f"response.{part}.added"], [f"response.{part}.done"]
    message = ["response.output_item.added", "response.content_part.added"]
    assert types == [*added, f"response.{kind}.done", *done, "response.output_item.done", *message]
    assert "".join(event.delta for event in events if event.type == f"response.{kind}.delta") == THOUGHT
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.uses("anthropic")
def test_anthropic_has_blocks_of_it_whole_and_streamed(
    server: ApiServer, key: str, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    ask: Any = {"model": "thinker", "max_tokens": 90, "messages": QUESTION}
    thinking: Any = {"type": "enabled", "budget_tokens": 30}
    with (
        Anthropic(base_url=server.url, api_key=key, max_retries=0) as client,
        worker.serve(pieces(WHOLE)),
    ):
        whole: Any = client.messages.create(**ask, thinking=thinking)
        with client.messages.stream(**ask, thinking=thinking) as stream:
            streamed: Any = stream.get_final_message()
        for message in (whole, streamed):
            first, second = message.content
            assert (first.type, first.thinking, second.text) == ("thinking", THOUGHT, ANSWER)
            assert first.signature
        turns = [*QUESTION, {"role": "assistant", "content": whole.content}, {"role": "user", "content": "Sure?"}]
        raw = client.messages.with_raw_response.create(**{**ask, "messages": turns})
        payload = input_of(db, tenant, raw.headers["x-job-id"])
    assert payload["input"]["messages"][1] == {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    assert "reasoning" not in payload, "without `thinking` the model is switched off"


ASKED = [
    ({"reasoning_effort": "none"}, None),
    ({"chat_template_kwargs": {"enable_thinking": False}}, None),
    ({"enable_thinking": False}, None),
    ({"reasoning_effort": "low"}, 20),
    ({"reasoning": {"max_tokens": 9}}, 9),
    ({"thinking_budget": 9, "enable_thinking": True}, 9),
    ({"response_format": {"type": "json_object"}}, True),
]


@some_of(2, ("fields", "expected"), ASKED)
def test_what_is_asked_for_reaches_the_job(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str, fields: dict[str, Any], expected: Any
) -> None:
    with worker.serve(lambda _payload: ["ok"]):
        answer = api.post(
            "/v1/chat/completions", json={"model": "thinker", "messages": QUESTION, "max_tokens": 100, **fields}
        )
    reasoning = input_of(db, tenant, answer.headers["x-job-id"]).get("reasoning", {})
    if expected is True:
        assert reasoning["is_forced"] is True, "a form of the answer does not keep the model from its reasoning"
    else:
        assert reasoning.get("max_tokens") == expected
        assert bool(reasoning) is (expected is not None)


REFUSED = [
    ("thinker", {"reasoning_effort": "none", "enable_thinking": True}, "reasoning_effort"),
    ("thinker", {"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning_effort"),
    ("thinker", {"thinking_budget": 0}, "thinking_budget"),
    ("thinker", {"verbosity": "high"}, "verbosity"),
    ("tiny", {"reasoning_effort": "high"}, "reasoning_effort"),
    ("tiny", {"enable_thinking": True}, "enable_thinking"),
    ("tiny", {"thinking_budget": 5}, "thinking_budget"),
]


def test_what_cannot_be_done_is_refused_and_what_means_nothing_passes(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker, redis_client: redis.Redis, db: Database
) -> None:
    for model, fields, param in REFUSED:
        with pytest.raises(BadRequestError) as refused:
            openai.chat.completions.create(model=model, messages=QUESTION, extra_body=fields)
        assert refused.value.param == param, (model, fields, refused.value.message)
    harmless: Any = {"reasoning_effort": "minimal", "verbosity": "medium"}
    with ScriptedWorker(db, redis_client, "tiny@1").serve(lambda _payload: [WHOLE]):
        message = openai.chat.completions.create(model="tiny", messages=QUESTION, **harmless).choices[0].message
        response = openai.responses.create(model="tiny", input="hi", reasoning={"summary": "auto", "effort": "none"})
    assert message.content == response.output_text == WHOLE, "a model without marks writes them as any text"
    assert api.get("/v1/models/tiny").json()["reasoning"] is None
    shown = api.get("/v1/models/thinker").json()["reasoning"]
    assert shown["default"] is True
    assert shown["levels"] == []
    assert shown["efforts"][0] == "none"


def test_an_item_sent_back_and_a_namespace_reach_the_model(
    openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    tools: Any = [{"type": "namespace", "name": "sky", "tools": FLAT}, FLAT[1], {"type": "web_search"}]
    call = SAID["hermes"].replace("get_weather", "sky__get_weather")
    ask: Any = {"model": "thinker", "tools": tools, "store": False, "include": ["reasoning.encrypted_content"]}
    with worker.serve(pieces(f"<think>{THOUGHT}</think>{call}")):
        first: Any = openai.responses.create(**ask, input="Oslo?")
        result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "2°"}
        turns: Any = [{"role": "user", "content": "Oslo?"}, *[item.to_dict() for item in first.output], result]
        second = openai.responses.create(**ask, input=turns)
    called = first.output[1]
    assert (called.name, called.namespace) == ("get_weather", "sky")
    given = input_of(db, tenant, job_id_of(second.id))["input"]
    assert [tool["function"]["name"] for tool in given["tools"]] == ["sky__get_weather", "sky__now", "now"]
    assert given["messages"][1]["reasoning_content"] == THOUGHT
    assert given["messages"][1]["tool_calls"][0]["function"]["name"] == "sky__get_weather"
