"""Anthropic's Messages API, asked by its official client."""

from typing import Any

import anthropic as sdk
import httpx2
import pytest
from anthropic import Anthropic
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.settings import Settings
from tests.processes import wait_for
from tests.producer_api.calling import error_of, num_jobs, parse
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import serving

HI: Any = [{"role": "user", "content": "hi"}]
ASKED: Any = {"model": "tiny", "max_tokens": 32, "messages": HI}


def _only_job(db: Database, tenant: str) -> jobs.Job:
    """Wait for the job of a call that has not returned."""
    return wait_for(lambda: jobs.list_jobs(db, tenant), "the job is stored")[0]


def test_a_message(client: Anthropic, worker: ScriptedWorker) -> None:
    worker.cached_tokens = 4
    with worker.serve(lambda _: ["wa", "ter"]):
        raw = client.messages.with_raw_response.create(**ASKED)
    message = raw.parse()
    assert message.id == f"msg_{raw.headers['x-job-id'].removeprefix('job_')}"
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "water"}]
    assert (message.role, message.model, message.type) == ("assistant", "tiny@1", "message")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    counted = client.messages.count_tokens(model="tiny", messages=HI).input_tokens
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (counted - 4, 4, 2)
    assert usage.service_tier == "priority"
    assert message._request_id == raw.headers["x-request-id"]
    assert raw.headers["x-model-version"] == "1"


def test_the_order_of_events_on_the_wire(api: httpx2.Client, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _: ["wa", "ter"]):
        response = api.post("/v1/messages", json=ASKED | {"stream": True})
    # Without the pings of a slow machine.
    events = [event for event in parse(response.content) if event.name != "ping"]
    assert [event.name for event in events] == [event.data["type"] for event in events]
    assert [event.name for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, block, first, _, stop, delta, _ = (event.data for event in events)
    assert start["message"]["content"] == []
    assert start["message"]["usage"]["output_tokens"] == 0
    assert (block["index"], block["content_block"]) == (0, {"type": "text", "text": ""})
    assert (first["index"], first["delta"]) == (0, {"type": "text_delta", "text": "wa"})
    assert stop["index"] == 0
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == 2


def test_an_empty_answer_is_no_block_and_can_be_sent_back(client: Anthropic, worker: ScriptedWorker) -> None:
    with worker.serve(lambda payload: [] if len(payload["input"]["messages"]) == 1 else ["heard"]):
        with client.messages.stream(**ASKED) as stream:
            empty = stream.get_final_message()
        assert empty.content == client.messages.create(**ASKED).content == []
        turns: Any = [*HI, {"role": "assistant", "content": empty.content}, {"role": "user", "content": "and?"}]
        # The two user turns are one message: chat templates expect turns to alternate.
        assert client.messages.create(**ASKED | {"messages": turns}).content == []
        turns.append({"role": "system", "content": "Be loud."})
        (block,) = client.messages.create(**ASKED | {"messages": turns}).content
        assert block.type == "text"
        assert block.text == "heard"


@pytest.mark.parametrize(
    ("finish_reason", "stop_text", "expected"),
    [("stop", "END", ("stop_sequence", "END")), ("length", None, ("max_tokens", None))],
)
def test_why_an_answer_ends(
    client: Anthropic,
    worker: ScriptedWorker,
    db: Database,
    tenant: str,
    finish_reason: str,
    stop_text: str,
    expected: Any,
) -> None:
    with client.messages.stream(**ASKED, stop_sequences=["END"]) as stream:
        attempt = worker.claim(_only_job(db, tenant).id)
        worker.say(attempt, "one")
        worker.succeed(attempt, finish_reason, stop_text=stop_text)
        streamed = stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == expected


def test_every_field_reaches_the_job(api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str) -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    asked = {
        "model": "tiny",
        "max_tokens": 7,
        "system": [{"type": "text", "text": "Be brief.", **cached}, {"type": "text", "text": "Be kind."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", **cached}]}
        ],
        "stop_sequences": ["END", "\n\n"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 3,
        "metadata": {"user_id": "u1"},
        "service_tier": "standard_only",
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "inference_geo": "eu",
        "job": {"priority": 2},
    }
    with worker.serve(lambda _: ["{}"]):
        answer = api.post("/v1/messages", json=asked, headers={"anthropic-version": "2023-06-01"})
    assert answer.json()["usage"]["service_tier"] == "standard"
    job = jobs.get(db, tenant, answer.headers["x-job-id"])
    assert job.payload["input"]["messages"] == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "a\nb"},
    ]
    sampling = job.payload["sampling"]
    expected = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "seed": 3, "stop": ["END", "\n\n"]}
    assert {name: sampling[name] for name in expected} == expected
    assert sampling["grammar"]["kind"] == "json_schema"
    assert (job.service_class, job.priority) == ("standard", 2)
    with db.begin() as connection:
        assert connection.execute(text("SELECT user_id FROM jobs")).scalar_one() == "u1"


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_0"}])
def test_a_thread_is_refused_by_the_code_upon_which_clients_send_all_messages(
    api: httpx2.Client, db: Database, thread: Any
) -> None:
    for asked in (ASKED, ASKED | {"stream": True}):
        refused = api.post("/v1/messages", json=asked | {"thread": thread})
        error = error_of(refused)
        assert (refused.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "thread")
        assert error["details"] == {"error_code": "thread_unsupported_request"}
    assert num_jobs(db) == 0
    # A count is of the messages alone, whatever becomes of them.
    counted = {name: ASKED[name] for name in ("model", "messages")} | {"compaction": {"type": "summarize"}}
    assert api.post("/v1/messages/count_tokens", json=counted).status_code == 200


def test_a_job_that_fails_in_a_stream_raises(
    client: Anthropic, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    with client.messages.create(**ASKED, stream=True) as stream:
        events = iter(stream)
        assert next(events).type == "message_start"
        attempt = worker.claim(_only_job(db, tenant).id)
        worker.say(attempt, "half")
        assert [next(events).type for _ in range(2)] == ["content_block_start", "content_block_delta"]
        worker.fail(attempt, "out_of_memory", "no memory left")
        with pytest.raises(sdk.APIStatusError, match="no memory left") as raised:
            next(events)
    body: Any = raised.value.body
    assert (body["type"], body["error"]["type"], body["error"]["code"]) == ("error", "api_error", "out_of_memory")


def test_leaving_a_stream_cancels_its_job(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    with api.stream("POST", "/v1/messages", json=ASKED | {"stream": True}) as response:
        chunks = response.iter_raw()
        next(chunks)
        attempt = worker.claim(_only_job(db, tenant).id)
        worker.say(attempt, "half")
    assert wait_for(lambda: jobs.get(db, tenant, attempt.claim.job_id).cancel_requested_at, "its cancel is asked for")


def test_the_client_asks_twice_and_there_is_one_job(
    client: Anthropic, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    with worker.serve(lambda _: ["x"]):
        by_key = [client.messages.create(**ASKED, extra_headers={"Idempotency-Key": "k"}) for _ in range(2)]
        first = client.messages.create(**ASKED)
        retried = client.messages.create(**ASKED, extra_headers={"x-stainless-retry-count": "1"})
    assert by_key[0] == by_key[1]
    assert first.id == retried.id
    assert num_jobs(db) == 2


def test_the_key_is_sent_in_either_header(make_client: MakeClient, key: str, other_key: str) -> None:
    anyone = make_client(None)
    for path in ("/v1/models", "/v1/jobs"):
        assert anyone.get(path, headers={"x-api-key": key}).status_code == 200
    assert anyone.get("/v1/jobs", headers={"x-api-key": key, "Authorization": f"Bearer {key}"}).status_code == 200
    two = anyone.get("/v1/jobs", headers={"x-api-key": key, "Authorization": f"Bearer {other_key}"})
    assert (two.status_code, error_of(two)["param"]) == (400, "x-api-key")


def test_models_in_anthropics_format(client: Anthropic, api: httpx2.Client) -> None:
    ids = [model["id"] for model in api.get("/v1/models").json()["data"]]
    assert [model.id for model in client.models.list(limit=1)] == ids, "the client reads page after page"
    page = client.models.list(before_id=ids[2], limit=1)
    assert ([model.id for model in page.data], page.has_more) == ([ids[1]], True)
    assert (page.data[0].type, page.data[0].lifecycle) == ("model", "active")
    assert client.models.retrieve("tiny").display_name == "tiny"
    with pytest.raises(sdk.NotFoundError) as missing:
        client.models.retrieve("huge")
    body: Any = missing.value.body
    assert body["error"]["type"] == "not_found_error"


def test_errors_of_every_layer_have_the_shape(
    api: httpx2.Client, make_client: MakeClient, settings: Settings, model: object, key: str
) -> None:
    big = {**ASKED, "system": "x" * 2_000_000}
    refused = {
        "authentication_error": make_client("hr_nobody").post("/v1/messages", json=ASKED),
        "request_too_large": api.post("/v1/messages", json=big),
        "not_found_error": api.post("/v1/messages/nothing", json={}),
    }
    limited = settings.model_copy(update={"requests_per_minute": 1})
    with serving(limited) as server, httpx2.Client(base_url=server.url, headers={"x-api-key": key}, timeout=60) as busy:
        answers = [busy.post("/v1/messages/count_tokens", json=ASKED | {"max_tokens": 1}) for _ in range(3)]
    refused["rate_limit_error"] = next(answer for answer in answers if answer.status_code == 429)
    for kind, answer in refused.items():
        assert error_of(answer)["type"] == kind, answer.text
    assert [answer.status_code for answer in refused.values()] == [401, 413, 404, 429]
    assert refused["rate_limit_error"].headers["retry-after"]


def _turn(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


TEXT = {"type": "text", "text": "x"}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "1"}
CALLED = [HI[0], {"role": "assistant", "content": [USE]}]
F = {"name": "f", "input_schema": {"type": "object"}}

# What is changed in a good request, the field that the error names, and words of its message.
BAD: dict[str, tuple[Any, str | None, str]] = {
    "no model": ({"model": None}, "model", "string"),
    "unknown model": ({"model": "huge"}, "model", "known: tiny"),
    "no max_tokens": ({"max_tokens": None}, "max_tokens", "integer"),
    "max_tokens is 0": ({"max_tokens": 0}, "max_tokens", "greater"),
    "max_tokens is a text": ({"max_tokens": "9"}, "max_tokens", "integer"),
    "over the window": ({"max_tokens": 500, "system": "x" * 600}, "messages", "too long"),
    "no messages": ({"messages": []}, "messages", "at least 1"),
    "messages are a text": ({"messages": "hi"}, "messages", "array"),
    "unknown role": (_turn(TEXT, role="wizard"), "messages[0].role", "user, assistant and system"),
    "empty turn": ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "empty"),
    "nothing but an empty answer": ({"messages": [{"role": "assistant", "content": []}]}, "messages", "empty"),
    "an answer begun": (_turn(TEXT, role="assistant"), "messages[0]", "continues its last turn"),
    "an image": (_turn({"type": "image", "source": {}}), "messages[0].content[0].source", "base64 with `media_type`"),
    "a document": (_turn(TEXT, {"type": "document", "source": {}}), "messages[0].content[1].type", "'document'"),
    "an image as result": (
        {"messages": [*CALLED, _turn({**RESULT, "content": [{"type": "image"}]})["messages"][0]]},
        "messages[2].content[0].content[0].type",
        "only text blocks",
    ),
    "a use by the user": (_turn(USE), "messages[0].content[0].type", "text, image and tool_result"),
    "a use without an id": (
        {"messages": [HI[0], {"role": "assistant", "content": [{**USE, "id": None}]}]},
        "messages[1].content[0].id",
        "is required",
    ),
    "a use without a result": ({"messages": [*CALLED, HI[0]]}, "messages[1]", "needs a `tool_result`"),
    "a use at the end": ({"messages": CALLED}, "messages[1]", "needs a `tool_result`"),
    "a result without a use": (_turn(RESULT), "messages[0].content[0]", "no `tool_use` block"),
    "a result after text": (
        {"messages": [*CALLED, _turn(TEXT, RESULT)["messages"][0]]},
        "messages[2].content[1]",
        "before",
    ),
    "a result that is an object": (
        {"messages": [*CALLED, _turn({**RESULT, "content": {"a": 1}})["messages"][0]]},
        "messages[2].content[0].content",
        "a text, or text blocks",
    ),
    "two uses of one id": ({"messages": [HI[0], {"role": "assistant", "content": [USE, USE]}]}, "messages[1]", "two"),
    "an image in system": ({"system": [{"type": "image"}]}, "system[0].type", "only text blocks"),
    "a server's tool": ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type", "custom tools"),
    "a tool without a name": ({"tools": [{"input_schema": {}}]}, "tools[0].name", "is required"),
    "a tool without a schema": ({"tools": [{"name": "f"}]}, "tools[0].input_schema", "is required"),
    "a bad schema": ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, "tools[0].input_schema", "object"),
    "a bad name": ({"tools": [{**F, "name": "a b"}]}, "tools[0].name", "pattern"),
    "two tools of a name": ({"tools": [F, F]}, "tools", "two functions"),
    "a tool with examples": ({"tools": [{**F, "input_examples": [{}]}]}, "tools[0].input_examples", "leave it out"),
    "a choice of nothing": ({"tool_choice": {"type": "any"}}, "tool_choice", "needs `tools`"),
    "an unknown choice": ({"tools": [F], "tool_choice": {"type": "some"}}, "tool_choice.type", "auto, any"),
    "a tool that is not there": (
        {"tools": [F], "tool_choice": {"type": "tool", "name": "g"}},
        "tool_choice",
        "no tool",
    ),
    "a tool without its name": ({"tools": [F], "tool_choice": {"type": "tool"}}, "tool_choice.name", "is required"),
    "thinking": ({"thinking": {"type": "enabled", "budget_tokens": 4}}, "thinking.budget_tokens", "does not reason"),
    "only thinking": (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        "thinking.budget_tokens",
        "leaves nothing",
    ),
    "endless thinking": ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "is required"),
    "other thinking": ({"thinking": {"type": "deep"}}, "thinking.type", "adaptive"),
    "thinking is a flag": ({"thinking": True}, "thinking", "object"),
    "an empty stop": ({"stop_sequences": [""]}, "stop_sequences[0]", "at least 1"),
    "a stop that is a text": ({"stop_sequences": "END"}, "stop_sequences", "array"),
    "too hot": ({"temperature": 9}, "temperature", "less than"),
    "no tier": ({"service_tier": "flex"}, "service_tier", "auto"),
    "no form": ({"output_config": {"format": {"type": "json"}}}, "output_config.format.type", "json_schema"),
    "an impossible form": (
        {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
        "output_config.format",
        "",
    ),
    "a server of tools": ({"mcp_servers": [{"url": "https://x"}]}, "mcp_servers", "name them in `server_tools`"),
    "a container": ({"container": "c"}, "container", "leave it out"),
    "forgetting": ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management", ""),
    "another API's field": ({"stop": ["END"]}, "stop", "send `stop_sequences`"),
    "several answers": ({"n": 2}, "n", "one request for each answer"),
    "a slip": ({"max_token": 3}, "max_token", "did you mean `max_tokens`"),
}


def test_a_bad_request_names_its_field(api: httpx2.Client, db: Database, subtests: pytest.Subtests) -> None:
    for name, (changes, param, words) in BAD.items():
        with subtests.test(name):
            error = error_of(api.post("/v1/messages", json=ASKED | changes))
            kind = "not_found_error" if name == "unknown model" else "invalid_request_error"
            assert (error["type"], error["param"]) == (kind, param), error
            assert words in error["message"]
    assert num_jobs(db) == 0
