"""OpenAI's Responses API, asked by the official client."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import httpx2
import openai as sdk
import pytest
import redis
from openai import OpenAI
from pydantic import BaseModel

from store.db.database import Database
from store.errors import Gone
from store.jobs import jobs
from store.registry.models import ModelVersion, register_version
from store.settings import Settings
from tests.processes import wait_for
from tests.producer_api.calling import error_of, num_jobs, parse, state_of
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import Attempt, ScriptedWorker
from tests.producer_api.serving import ApiServer, serving

HELLO = {"model": "tiny", "input": "hi"}
TEXT = "The water 流れる turns the wheel."
PIECES = ["The wat", "er 流", "れる", " turns the", " wheel."]
ORDER = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
ENDING = ["output_text.done", "content_part.done", "output_item.done", "completed"]


@pytest.fixture
def both(settings: Settings, model: ModelVersion, key: str) -> Iterator[list[OpenAI]]:
    """Clients of two API servers."""
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(settings)).url for _ in range(2)]
        made = [OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) for url in urls]
        yield [stack.enter_context(client) for client in made]


def job_of(response_id: str) -> str:
    return response_id.replace("resp_", "job_")


def kinds(events: list[Any]) -> list[str]:
    """The events' types, without repetitions."""
    named = [event.type.removeprefix("response.") for event in events]
    return [kind for kind, before in zip(named, [None, *named], strict=False) if kind != before]


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def only_job(db: Database, tenant: str) -> jobs.Job:
    wait_for(lambda: jobs.list_jobs(db, tenant))
    return jobs.list_jobs(db, tenant)[0]


def rest(client: OpenAI, response_id: str, after: int | None) -> list[Any]:
    options: Any = {} if after is None else {"starting_after": after}
    return list(client.responses.retrieve(response_id, stream=True, **options))


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


class TestStreams:
    def test_the_order_of_events(self, openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker) -> None:
        with worker.serve(lambda _: PIECES):
            events = list(openai.responses.create(**HELLO, stream=True))
            with openai.responses.stream(**HELLO) as stream:
                told = list(stream)
                final = stream.get_final_response()
            raw = parse(api.post("/v1/responses", json=HELLO | {"stream": True}).content)
        assert kinds(events) == kinds(told) == [*ORDER, *ENDING]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [int(event.id) for event in raw] == list(range(len(raw)))
        assert all(event.name == event.data["type"] for event in raw)
        assert text_of(events) == final.output_text == events[-1].response.output_text == TEXT
        assert openai.responses.retrieve(events[0].response.id) == events[-1].response

    def test_text_is_streamed_as_it_comes(
        self, openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str
    ) -> None:
        events = iter(openai.responses.create(**HELLO, stream=True))
        assert [next(events).type for _ in range(2)] == ["response.created", "response.in_progress"]
        attempt = worker.claim(only_job(db, tenant).id)
        received: list[Any] = []
        for piece in PIECES:
            worker.say(attempt, piece)
            said = "".join(attempt.said)
            while len(text_of(received).encode()) < len(said.encode()) - 2:
                received.append(next(events))
        worker.succeed(attempt)
        assert text_of([*received, *events]) == TEXT

    def test_every_number_leads_to_the_same_from_any_server(
        self, both: list[OpenAI], worker: ScriptedWorker, redis_client: redis.Redis
    ) -> None:
        here, there = both
        stream = here.responses.create(**HELLO, background=True, stream=True)
        events = iter(stream)
        received = [next(events), next(events)]
        assert [event.type for event in received] == ["response.created", "response.queued"]
        response_id = received[0].response.id
        attempt = worker.claim(job_of(response_id))
        worker.say(attempt, *PIECES[:3])
        while text_of(received) != "The water 流れる":
            received.append(next(events))
        # While it runs, from Redis.
        for event in received:
            late = iter(there.responses.retrieve(response_id, stream=True, starting_after=event.sequence_number))
            for expected in received[event.sequence_number + 1 :]:
                assert next(late) == expected
        worker.say(attempt, *PIECES[3:])
        worker.succeed(attempt)
        received += events
        assert kinds(received) == ["created", "queued", *ORDER[1:], *ENDING]
        # Afterwards, from Postgres.
        redis_client.flushall()
        for number in [None, *range(len(received))]:
            late = rest(there if number is None or number % 2 else here, response_id, number)
            assert late == received[0 if number is None else number + 1 :]
        with there.responses.stream(response_id=response_id, starting_after=5) as replay:
            assert text_of(list(replay)) == text_of(received[6:])

    @pytest.mark.parametrize("is_wiped", [False, True], ids=["redis remembers", "redis was wiped"])
    def test_a_lost_worker_goes_unnoticed(
        self, both: list[OpenAI], worker: ScriptedWorker, redis_client: redis.Redis, is_wiped: bool
    ) -> None:
        here, there = both
        response = here.responses.create(**HELLO, background=True)
        events = iter(here.responses.retrieve(response.id, stream=True))
        first = worker.claim(job_of(response.id))
        worker.say(first, *PIECES[:4])
        received: list[Any] = []
        while text_of(received) != "The water 流れる turns th":
            received.append(next(events))
        if is_wiped:
            redis_client.flushall()
        worker.hand_back(first, charge=True)
        # The next attempt kept little or nothing of the sent text, repeats it and splits it at other places.
        second = worker.claim(first.claim.job_id) if is_wiped else worker.go_on(first, 1)
        already = "" if is_wiped else PIECES[0]
        worker.say(second, *TEXT.removeprefix(already))
        for event in received:
            late = iter(there.responses.retrieve(response.id, stream=True, starting_after=event.sequence_number))
            for expected in received[event.sequence_number + 1 :]:
                assert next(late) == expected
        worker.succeed(second)
        received += events
        assert text_of(received) == TEXT
        assert [event.sequence_number for event in received] == list(range(len(received)))
        for number in range(len(received)):
            assert rest(there, response.id, number) == received[number + 1 :]

    def test_another_text_is_never_glued(self, openai: OpenAI, worker: ScriptedWorker) -> None:
        response = openai.responses.create(**HELLO, background=True)
        events = iter(openai.responses.retrieve(response.id, stream=True))
        first = worker.claim(job_of(response.id))
        worker.say(first, "water")
        received = [next(events) for _ in range(6)]
        assert text_of(received) == "wat"
        worker.hand_back(first, charge=True)
        second = worker.claim(first.claim.job_id)
        worker.say(second, "fire", "wood")
        with pytest.raises(sdk.APIError, match="generated a different text"):
            list(events)
        worker.succeed(second)
        assert text_of(rest(openai, response.id, None)) == "firewood"

    def test_leaving_cancels_what_nobody_else_waits_for(
        self, api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str, server: ApiServer
    ) -> None:
        for body, is_cancelled in (({"background": True}, False), ({}, True)):
            with api.stream("POST", "/v1/responses", json=HELLO | {"stream": True} | body) as response:
                next(response.iter_raw())
                job = only_job(db, tenant)
            wait_for(lambda: not server.runtime.metrics.streams_open.collect()[0].samples[0].value)
            if is_cancelled:
                wait_for(lambda job=job: state_of(db, job.id) == "cancelled")
            assert (state_of(db, job.id) == "cancelled") is is_cancelled

    def test_a_draining_server_ends_no_stream_cleanly(
        self, api: httpx2.Client, server: ApiServer, worker: ScriptedWorker, db: Database, tenant: str
    ) -> None:
        with api.stream("POST", "/v1/responses", json=HELLO | {"stream": True, "background": True}) as response:
            chunks = response.iter_raw()
            next(chunks)
            server.drain()
            with pytest.raises(httpx2.RemoteProtocolError):
                list(chunks)
        assert state_of(db, only_job(db, tenant).id) == "queued"


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


@contextmanager
def obeying(worker: ScriptedWorker, attempt: Attempt, db: Database, tenant: str) -> Iterator[None]:
    """End the attempt as soon as its cancellation is asked for."""

    def obey() -> None:
        wait_for(lambda: jobs.get(db, tenant, attempt.claim.job_id).cancel_requested_at)
        worker.obey_cancel(attempt)

    thread = threading.Thread(target=obey)
    thread.start()
    yield
    thread.join(timeout=20)


class TestConversations:
    def test_a_response_goes_on_from_another(
        self, both: list[OpenAI], worker: ScriptedWorker, make_client: MakeClient, other_key: str
    ) -> None:
        here, there = both
        seen: list[list[tuple[str, str]]] = []

        def answer(payload: dict[str, Any]) -> list[str]:
            seen.append([(turn["role"], turn["content"]) for turn in payload["input"]["messages"]])
            return [f"answer {len(seen)}"]

        with worker.serve(answer):
            first = here.responses.create(**HELLO, instructions="Be brief.")
            second = there.responses.create(model="tiny", input="more", previous_response_id=first.id)
            here.responses.delete(first.id)
            third = here.responses.create(
                model="tiny", input="again", previous_response_id=second.id, instructions="Be loud.", store=False
            )
        turns = [("user", "hi"), ("assistant", "answer 1"), ("user", "more"), ("assistant", "answer 2")]
        assert seen == [
            [("system", "Be brief."), *turns[:1]],
            turns[:3],
            [("system", "Be loud."), *turns, ("user", "again")],
        ]
        assert second.previous_response_id == first.id
        listed = list(here.responses.input_items.list(second.id, limit=2, order="asc"))
        said = [(item.role, item.content[0].text) for item in listed]  # type: ignore[union-attr]
        assert said == turns[:3]
        assert [item.id for item in here.responses.input_items.list(second.id)] == [item.id for item in listed[::-1]]
        for gone in (first.id, third.id, "resp_none", job_of(second.id)):
            with pytest.raises(sdk.NotFoundError):
                here.responses.create(model="tiny", input="x", previous_response_id=gone)
        with pytest.raises(sdk.NotFoundError):
            here.responses.retrieve(third.id)
        stranger = make_client(other_key)
        path = f"/v1/responses/{second.id}"
        calls = [("GET", path), ("DELETE", path), ("POST", f"{path}/cancel"), ("GET", f"{path}/input_items")]
        answers = [stranger.request(method, url) for method, url in calls]
        answers.append(stranger.post("/v1/responses", json=HELLO | {"previous_response_id": second.id}))
        assert {answer.status_code for answer in answers} == {404}

    def test_an_answer_can_be_sent_back_as_it_is_or_by_its_id(
        self, openai: OpenAI, worker: ScriptedWorker, make_client: MakeClient, other_key: str
    ) -> None:
        seen: list[list[tuple[str, str]]] = []

        def answer(payload: dict[str, Any]) -> list[str]:
            seen.append([(turn["role"], turn["content"]) for turn in payload["input"]["messages"]])
            return ["answer"] if len(seen) == 1 else [""]

        thought: Any = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
        user: Any = {"role": "user", "content": "more"}
        with worker.serve(answer):
            first = openai.responses.create(**HELLO)
            (said,) = first.output
            reference: Any = {"type": "item_reference", "id": said.id}
            second = openai.responses.create(model="tiny", input=[{"role": "user", "content": ""}, reference, user])
            nothing: Any = [item.model_dump() for item in second.output]
            refused: Any = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
            openai.responses.create(model="tiny", input=[user, thought, *nothing, user, refused, user])
            stranger = make_client(other_key)
            lost = stranger.post("/v1/responses", json={"model": "tiny", "input": [reference]})
        assert seen[1:] == [
            [("user", ""), ("assistant", "answer"), ("user", "more")],
            [("user", "more"), ("assistant", ""), ("user", "more"), ("assistant", "No."), ("user", "more")],
        ]
        assert [item.id for item in openai.responses.input_items.list(second.id)][1] == said.id
        assert (lost.status_code, error_of(lost)["param"]) == (404, "input[0].id")

    def test_only_an_answer_can_be_continued(self, openai: OpenAI) -> None:
        waiting = openai.responses.create(**HELLO, background=True)
        for said in ("has not ended", "is cancelled"):
            with pytest.raises(sdk.BadRequestError, match=said) as raised:
                openai.responses.create(model="tiny", input="x", previous_response_id=waiting.id)
            assert raised.value.param == "previous_response_id"
            openai.responses.cancel(waiting.id)

    def test_what_is_too_long_is_refused_or_shortened(self, openai: OpenAI, worker: ScriptedWorker) -> None:
        turns: Any = [{"role": role, "content": f"{n} " * 20} for n in range(20) for role in ("user", "assistant")]
        long: Any = {"model": "tiny", "input": [*turns, {"role": "user", "content": "last"}], "instructions": "Go."}
        with pytest.raises(sdk.BadRequestError) as raised:
            openai.responses.create(**long)
        assert raised.value.code == "context_length_exceeded"
        payloads: list[Any] = []
        with worker.serve(lambda payload: payloads.append(payload) or ["x"]):
            response = openai.responses.create(**long, truncation="auto", max_output_tokens=100)
        messages = payloads[0]["input"]["messages"]
        assert [messages[0]["content"], messages[-1]["content"]] == ["Go.", "last"]
        assert messages[1:-1] == turns[-(len(messages) - 2) :]
        assert response.usage is not None
        counted = openai.responses.input_tokens.count(**long, truncation="auto")
        assert 300 < response.usage.input_tokens <= 412
        assert counted.input_tokens < openai.responses.input_tokens.count(**long).input_tokens

    def test_a_prompt_is_filled_in(self, openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker) -> None:
        template = {
            "name": "guide",
            "instructions": "You guide through {{ city }}.",
            "messages": [{"role": "user", "content": "{{greeting}}!"}],
            "variables": ["city", "greeting"],
        }
        made = api.post("/v1/prompts", json=template)
        assert (made.status_code, made.json()["version"]) == (201, 1)
        prompt_id = made.json()["id"]
        plain = {"instructions": "You know {{city}}.", "variables": ["city"]}
        assert api.post(f"/v1/prompts/{prompt_id}/versions", json=plain).json()["version"] == 2
        versions = api.get(f"/v1/prompts/{prompt_id}/versions").json()["data"]
        assert [one["instructions"] for one in versions] == [template["instructions"], plain["instructions"]]
        assert [one["version"] for one in api.get("/v1/prompts").json()["data"]] == [2]
        seen: list[Any] = []
        values: Any = {"city": "Rome {{greeting}}", "greeting": {"type": "input_text", "text": "Ave"}}
        with worker.serve(lambda payload: seen.append(payload["input"]["messages"]) or ["x"]):
            first = openai.responses.create(
                model="tiny", prompt={"id": prompt_id, "version": "1", "variables": values}, input="Where to?"
            )
            newest = openai.responses.create(
                model="tiny", prompt={"id": prompt_id, "variables": {"city": "Oslo"}}, input="hi"
            )
        assert [turn["content"] for turn in seen[0]] == ["You guide through Rome {{greeting}}.", "Ave!", "Where to?"]
        assert [turn["content"] for turn in seen[1]] == ["You know Oslo.", "hi"]
        assert (first.prompt.version, newest.prompt.version) == ("1", "2")  # type: ignore[union-attr]
        for variables in ({}, {"city": "x", "more": "y"}):
            with pytest.raises(sdk.BadRequestError) as raised:
                openai.responses.create(model="tiny", prompt={"id": prompt_id, "variables": variables}, input="x")
            assert raised.value.param == "prompt.variables"
        for wrong in ({"id": "pmpt_none"}, {"id": prompt_id, "version": "3"}, {"id": prompt_id, "version": "one"}):
            with pytest.raises(sdk.NotFoundError):
                openai.responses.create(model="tiny", prompt=wrong, input="x")  # type: ignore[arg-type]
        undeclared = api.post("/v1/prompts", json={"instructions": "{{x}}"})
        assert (undeclared.status_code, error_of(undeclared)["code"]) == (400, "invalid_value")


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
    assert (error_of(refused)["param"], error_of(refused)["message"]) == (
        "tools",
        "tokens of tools that the server calls are not counted: leave them out",
    )
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
    assert error_of(refused)["message"] == "'msg_1' is not an item of this response"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "invalid_value", "input"),
    ({"input": []}, "invalid_value", "input"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "invalid_value", "input"),
    ({"input": [{"role": "user"}]}, "invalid_value", "input[0].content"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "not_found", "input[0].id"),
    ({"input": [{"id": f"msg_{'0' * 32}"}]}, "not_found", "input[0].id"),
    ({"input": [{"id": f"msg_{number:032x}"} for number in range(257)]}, "invalid_value", "input"),
    ({"input": [{"role": "narrator", "content": "x"}]}, "unsupported_parameter", "input[0].role"),
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
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    (
        {"tools": [{"type": "function", "name": "f", "parameters": {"type": "string"}}]},
        "invalid_value",
        "tools[0].parameters",
    ),
    ({"text": {"format": {"type": "xml"}}}, "unsupported_parameter", "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "invalid_value", "text.format.schema"),
    ({"text": {"verbosity": "low"}}, "unsupported_parameter", "text.verbosity"),
    ({"background": True, "store": False}, "invalid_value", "store"),
    ({"stream_options": {}}, "invalid_value", "stream_options"),
    ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
    ({"max_output_tokens": 600}, "context_length_exceeded", "max_output_tokens"),
    ({"temperature": 3}, "invalid_value", "temperature"),
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


WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "What the sky does.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


class TestFunctions:
    @pytest.fixture
    def model(self, db: Database) -> ModelVersion:
        """One with room for the description of a tool, a token a byte."""
        return register_version(
            db,
            model="tiny",
            runner="fake",
            source="fake:tiny",
            digest="0" * 64,
            dtype="float32",
            context_window=4096,
            files={},
            actor="tests",
        )

    def test_a_function_is_called_and_answered(self, openai: OpenAI, worker: ScriptedWorker) -> None:
        seen: list[Any] = []
        says = [["Let me see.\n", '{"name": "weath', 'er", "arguments": {"city": "Os', 'lo"}}'], ["Sunny."]]
        with worker.serve(lambda payload: seen.append(payload["input"]) or says[len(seen) - 1]):
            asked = openai.responses.create(**HELLO, tools=[WEATHER], tool_choice="auto")
            _, call = asked.output
            assert call.type == "function_call"
            assert (asked.output_text, call.type, call.name) == ("Let me see.", "function_call", "weather")
            assert json.loads(call.arguments) == {"city": "Oslo"}
            result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
            answered = openai.responses.create(
                model="tiny", input=[result], previous_response_id=asked.id, tools=[WEATHER]
            )
        assert answered.output_text == "Sunny."
        assert seen[0]["tools"][0]["function"]["name"] == "weather"
        turns = seen[1]["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "tool"]
        assert turns[1]["tool_calls"][0]["function"]["arguments"] == call.arguments
        assert (turns[2]["tool_call_id"], turns[2]["content"]) == (call.call_id, "sun")
        listed = list(openai.responses.input_items.list(answered.id, order="asc"))
        assert [item.type for item in listed] == ["message", "message", "function_call", "function_call_output"]
        with pytest.raises(sdk.BadRequestError, match="results of"):
            openai.responses.create(model="tiny", input="so?", previous_response_id=asked.id)

    @pytest.mark.parametrize("size", [1, 100])
    def test_its_events_do_not_depend_on_the_pieces(self, openai: OpenAI, worker: ScriptedWorker, size: int) -> None:
        said = 'Well.\n{"name": "weather", "arguments": {"city": "Oslo"}}\n{"name": "weather", "arguments": {}}'
        response = openai.responses.create(**HELLO, tools=[WEATHER], background=True)
        attempt = worker.claim(job_of(response.id))
        worker.say(attempt, *(said[at : at + size] for at in range(0, len(said), size)))
        worker.succeed(attempt)
        events = rest(openai, response.id, None)
        call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
        assert kinds(events)[2:] == [*ORDER[1:], *ENDING[:3], *call, "output_item.done", *call, *ENDING[2:]]
        shown = [(event.type, getattr(event, "delta", None)) for event in events]
        assert shown == self.shown.setdefault("events", shown)
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert done == events[-1].response.output == openai.responses.retrieve(response.id).output
        for number in range(len(events)):
            assert rest(openai, response.id, number) == events[number + 1 :]

    shown: ClassVar[dict[str, Any]] = {}
