"""OpenAI's Responses API, asked by the official client: whole answers, cancelling, refusals, webhooks."""

import json
from typing import Any

import httpx2
import openai as sdk
import pytest
from openai import OpenAI
from pydantic import BaseModel

from headrace.store.db.database import Database
from headrace.store.errors import Gone
from headrace.store.jobs import jobs
from tests.features.responses.response_calls import (
    ENDING,
    HELLO,
    PIECES,
    TEXT,
    job_of,
    kinds,
    obeying,
    only_job,
    rest,
)
from tests.producer_api.calling import error_of, num_jobs, parse, state_of
from tests.producer_api.scripted_worker import ScriptedWorker


class TestWhole:
    def test_every_field_reaches_the_job_or_is_shown_again(
        self, openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str
    ) -> None:
        given: Any = [
            {"role": "developer", "content": "In Latin."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        ]
        with worker.serve(lambda _: PIECES):
            response = openai.responses.create(
                model="tiny@1",
                instructions="Be brief.",
                input=given,
                max_output_tokens=7,
                temperature=0.5,
                top_p=0.9,
                metadata={"k": "v"},
                service_tier="flex",
                text={"format": {"type": "text"}},
                user="ann",
                extra_body={"seed": 42, "job": {"priority": 2}},
            )
        assert (response.output_text, response.status, response.model) == (TEXT, "completed", "tiny@1")
        assert (response.instructions, response.metadata, response.temperature) == ("Be brief.", {"k": "v"}, 0.5)
        assert (response.service_tier, response.user, response.max_output_tokens) == ("flex", "ann", 7)
        assert response.usage is not None
        assert response.usage.total_tokens == response.usage.input_tokens + len(PIECES)
        job = only_job(db, tenant)
        assert job.payload["input"]["messages"] == [
            {"role": "system", "content": "Be brief.\n\nIn Latin."},
            {"role": "user", "content": "hi"},
        ]
        sampling = job.payload["sampling"]
        assert (sampling["max_tokens"], sampling["temperature"], sampling["seed"]) == (7, 0.5, 42)
        assert (job.priority, job.service_class, job_of(response.id)) == (2, "batch", job.id)
        assert openai.responses.retrieve(response.id) == response

    def test_out_of_tokens(self, openai: OpenAI, worker: ScriptedWorker) -> None:
        background = openai.responses.create(**HELLO, background=True)
        assert (background.status, background.output) == ("queued", [])
        attempt = worker.claim(job_of(background.id))
        assert openai.responses.retrieve(background.id).status == "in_progress"
        worker.say(attempt, "half")
        worker.succeed(attempt, "length")
        response = openai.responses.retrieve(background.id)
        assert (response.status, response.output_text) == ("incomplete", "half")
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"

    @pytest.mark.parametrize("how", ["failed", "expired"])
    def test_a_job_that_does_not_answer(
        self, openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str, how: str
    ) -> None:
        response = openai.responses.create(**HELLO, background=True, extra_body={"job": {"max_attempts": 1}})
        attempt = worker.claim(job_of(response.id))
        worker.say(attempt, "half an answer")
        events = iter(openai.responses.retrieve(response.id, stream=True))
        received = [next(events) for _ in range(7)]
        worker.expire(attempt) if how == "expired" else worker.fail(attempt, "out_of_memory", "no memory left")
        received += events
        assert received[-1].type == "response.failed"
        assert [event.sequence_number for event in received] == list(range(len(received)))
        found = openai.responses.retrieve(response.id)
        assert found.status == "failed"
        assert found.error is not None
        assert found.error.message == {"failed": "no memory left", "expired": "out of time"}[how]
        assert found.to_dict()["job"]["status"] == how
        # Its text is not stored, but a client that reconnects with a number still gets the final event.
        for number in range(len(received)):
            late = rest(openai, response.id, number)
            assert [event.sequence_number for event in late] == list(range(number + 1, number + 1 + len(late)))
            assert late[-1].type == "response.failed"

    def test_an_idempotency_key_gives_the_same_response(
        self, api: httpx2.Client, worker: ScriptedWorker, db: Database
    ) -> None:
        headers = {"Idempotency-Key": "k"}
        with worker.serve(lambda _: ["x"]):
            first, second = (api.post("/v1/responses", json=HELLO, headers=headers) for _ in range(2))
            assert first.json() == second.json()
            other = api.post("/v1/responses", json=HELLO | {"store": False}, headers=headers)
        assert (second.headers["idempotent-replayed"], other.status_code, num_jobs(db)) == ("true", 422, 1)


class TestCancelling:
    def test_queued_running_and_ended(self, openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str) -> None:
        queued = openai.responses.create(**HELLO, background=True)
        assert openai.responses.cancel(queued.id).status == "cancelled"
        assert [event.type for event in rest(openai, queued.id, None)][-2:] == [
            "response.queued",
            "response.cancelled",
        ]
        running = openai.responses.create(**HELLO, background=True)
        attempt = worker.claim(job_of(running.id))
        worker.say(attempt, "half")
        with obeying(worker, attempt, db, tenant):
            cancelled = openai.responses.cancel(running.id)
        assert (cancelled.status, cancelled.output_text) == ("cancelled", "half")
        assert openai.responses.cancel(running.id) == cancelled
        assert kinds(rest(openai, running.id, None))[-4:] == [*ENDING[:3], "cancelled"]
        with worker.serve(lambda _: ["x"]):
            awaited = openai.responses.create(**HELLO)
        with pytest.raises(sdk.BadRequestError, match="background"):
            openai.responses.cancel(awaited.id)

    def test_deleted_is_gone(
        self, openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
    ) -> None:
        with worker.serve(lambda _: PIECES):
            response = openai.responses.create(**HELLO)
        openai.responses.delete(response.id)
        for again in (openai.responses.delete, openai.responses.retrieve, openai.responses.input_items.list):
            with pytest.raises(sdk.NotFoundError):
                again(response.id)
        with pytest.raises(Gone):
            jobs.get(db, tenant, job_of(response.id))
        waiting = openai.responses.create(**HELLO, background=True)
        openai.responses.delete(waiting.id)
        assert state_of(db, job_of(waiting.id)) == "cancelled"
        with worker.serve(lambda _: ["x"]):
            old = openai.responses.create(**HELLO)
        api.delete(f"/v1/jobs/{job_of(old.id)}").raise_for_status()
        for again in (openai.responses.retrieve, openai.responses.input_items.list):
            with pytest.raises(sdk.APIStatusError) as raised:
                again(old.id)
            assert (raised.value.status_code, raised.value.code) == (410, "result_expired")


def test_every_answer_names_its_job_and_its_place(api: httpx2.Client) -> None:
    made = api.post("/v1/responses", json=HELLO | {"background": True})
    response_id = made.json()["id"]
    path = f"/v1/responses/{response_id}"
    cancelled = api.post(f"{path}/cancel")
    body = HELLO | {"background": True, "stream": True}
    with (
        api.stream("GET", path, params={"stream": True}) as replay,
        api.stream("POST", "/v1/responses", json=body) as new,
    ):
        answers = (made, api.get(path), cancelled, replay)
        job = {"x-job-id": job_of(response_id), "x-model-version": "1", "content-location": path}
        assert [{name: answer.headers[name] for name in job} for answer in answers] == [job] * 4
        assert new.headers["content-location"] == f"/v1/responses/{new.headers['x-job-id'].replace('job_', 'resp_')}"
    counted = api.post("/v1/responses/input_tokens", json=HELLO).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": len("user: hi\n")}
    tools = {"server_tools": {"names": ["calculator"]}}
    refused = api.post("/v1/responses/input_tokens", json=HELLO | tools)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "tools")
    for number in ("x", "-1", "1.0", "9" * 16):
        refused = api.get(path, params={"stream": True}, headers={"Last-Event-ID": number})
        assert (refused.status_code, error_of(refused)["param"]) == (400, "Last-Event-ID")
    events = parse(api.get(path, params={"stream": True, "starting_after": 0}, headers={"Last-Event-ID": "1"}).content)
    assert [event.id for event in events] == ["2"], "the header of the browser wins"
    assert api.delete(path).json() == {"id": response_id, "object": "response", "deleted": True}


def test_a_page_of_input_items_says_where_it_ends(api: httpx2.Client) -> None:
    turns = [{"role": "user", "content": str(number)} for number in range(25)]
    made = api.post("/v1/responses", json={"model": "tiny", "input": turns, "background": True}).json()
    path = f"/v1/responses/{made['id']}/input_items"
    whole = api.get(path, params={"limit": 100, "order": "asc"}).json()["data"]
    assert [one["content"][0]["text"] for one in whole] == [one["content"] for one in turns]
    ids = [one["id"] for one in reversed(whole)]
    for asked, own, has_more in (
        ({}, ids[:20], True),
        ({"limit": 24}, ids[:24], True),
        ({"limit": 25}, ids, False),
        ({"after": ids[20]}, ids[21:], False),
        ({"limit": 2, "order": "asc", "after": ids[2]}, ids[1::-1], False),
        ({"after": ids[-1]}, [], False),
    ):
        page = api.get(path, params=asked).json()
        assert [one["id"] for one in page.pop("data")] == own
        first, last = (own[0], own[-1]) if own else (None, None)
        assert page == {"object": "list", "first_id": first, "last_id": last, "has_more": has_more}
    assert [api.get(path, params={"limit": limit}).status_code for limit in (0, 101)] == [400, 400]
    refused = api.get(path, params={"after": "msg_1"})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "after")
    assert "'msg_1'" in error_of(refused)["message"]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "invalid_value", "input"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "not_found", "input[0].id"),
    ({"input": [{"id": f"msg_{'0' * 32}"}]}, "not_found", "input[0].id"),
    ({"input": [{"id": f"msg_{number:032x}"} for number in range(257)]}, "invalid_value", "input"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "unsupported_parameter",
        "input",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://example.com/x"}]}]},
        "unsupported_parameter",
        "input[0].content[0].type",
    ),
    ({"n": 2}, "unsupported_parameter", "n"),
    ({"reasoning": {"effort": "high"}}, "unsupported_parameter", "reasoning.effort"),
    ({"reasoning": {"summary": "concise"}}, "unsupported_parameter", "reasoning.summary"),
    ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
    (
        {"tools": [{"type": "function", "name": "f", "parameters": {"type": "string"}}]},
        "invalid_value",
        "tools[0].parameters",
    ),
    ({"max_output_tokens": 600}, "context_length_exceeded", "max_output_tokens"),
    ({"top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"include": ["everything"]}, "invalid_value", "include[0]"),
    ({"job": {"priority": 11}}, "invalid_value", "job.priority"),
    ({"model": "huge"}, "model_not_found", "model"),
]


def test_what_cannot_be_honoured_is_refused(api: httpx2.Client, db: Database, subtests: pytest.Subtests) -> None:
    for changes, code, param in REFUSED:
        with subtests.test(param, changes=changes):
            error = error_of(api.post("/v1/responses", json=HELLO | changes))
            assert (error["code"], error["param"]) == (code, param), error["message"]
    assert num_jobs(db) == 0


@pytest.mark.uses("webhooks")
def test_webhooks_say_response(api: httpx2.Client, worker: ScriptedWorker, key: str) -> None:
    for url, events in (("one", ["response.completed", "job.succeeded"]), ("two", ["response.incomplete"])):
        made = api.post("/v1/webhook_endpoints", json={"url": f"https://hooks.example.com/{url}", "events": events})
        assert made.status_code == 201
    own = {"job": {"webhook": {"url": "https://hooks.example.com/own"}}, "background": True}
    for finish_reason, expected in (
        ("stop", [("one", "job.succeeded"), ("one", "response.completed"), ("own", "response.completed")]),
        ("length", [("one", "job.succeeded"), ("own", "response.incomplete"), ("two", "response.incomplete")]),
    ):
        job_id = job_of(api.post("/v1/responses", json=HELLO | own).json()["id"])
        worker.succeed(worker.claim(job_id), finish_reason)
        found = api.get(f"/v1/webhook_deliveries?job_id={job_id}").json()["data"]
        assert sorted((one["url"].rpartition("/")[2], one["type"]) for one in found) == expected


class River(BaseModel):
    """What an answer of the tests' schema is."""

    name: str
    length_km: int


def test_an_answer_is_parsed(openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str) -> None:
    with worker.serve(lambda _: ['{"name": "Po", ', '"length_km": 652}']):
        parsed = openai.responses.parse(model="tiny", input="A river.", text_format=River)
        with openai.responses.stream(model="tiny", input="A river.", text_format=River) as stream:
            streamed = stream.get_final_response()
        openai.responses.create(**HELLO, text={"format": {"type": "json_object"}})
    assert parsed.output_parsed == streamed.output_parsed == River(name="Po", length_km=652)
    assert parsed.to_dict()["text"]["format"]["name"] == "River"
    of_object, *of_schema = [job.payload["sampling"]["grammar"] for job in jobs.list_jobs(db, tenant)]
    assert of_object == {"kind": "json_schema", "text": '{"type": "object"}'}
    assert {json.loads(grammar["text"])["title"] for grammar in of_schema} == {"River"}


def test_a_response_tells_how_likely_each_token_was(openai: OpenAI, worker: ScriptedWorker) -> None:
    ask: Any = {**HELLO, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    with worker.serve(lambda _: PIECES):
        whole = openai.responses.create(**ask)
        events = list(openai.responses.create(**ask, stream=True))
    likely = whole.output[0].content[0].logprobs  # type: ignore[union-attr]
    assert b"".join(bytes(one.bytes) for one in likely or ()).decode() == TEXT
    assert len(likely[0].top_logprobs) == 2  # type: ignore[index]
    told = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    assert [one.token for one in told] == [one.token for one in likely or ()]
    assert events[-1].response.output[0].content[0].logprobs == likely
