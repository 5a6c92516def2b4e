"""OpenAI's face, asked by the official client."""

import json
import threading
from typing import Any

import httpx2
import openai as sdk
import pytest
from openai import OpenAI

from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.settings import Settings
from tests.cases import some_of
from tests.processes import wait_for
from tests.producer_api.calling import CHAT, cut_off, error_of, num_jobs, split, state_of
from tests.producer_api.scripted_worker import Attempt, ScriptedWorker
from tests.producer_api.serving import ApiServer, serving

MESSAGES: Any = [{"role": "user", "content": "hi"}]
FINGERPRINT = "fp_1_000000000000"


def _only_job(db: Database, tenant: str) -> jobs.Job:
    """Wait for the job of a call that has not returned."""
    return wait_for(lambda: jobs.list_jobs(db, tenant), "the job is stored")[0]


def _wait_for_state(db: Database, job_id: str, *states: str) -> str:
    wait_for(lambda: state_of(db, job_id) in states, lambda: f"{states}, it is {state_of(db, job_id)}")
    return state_of(db, job_id)


def test_a_completion(openai: OpenAI, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _: ["wa", "ter"]):
        raw = openai.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES)
    completion = raw.parse()
    assert completion.choices[0].message.content == "water"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "tiny@1"
    assert completion.id == f"chatcmpl-{raw.headers['x-job-id'].removeprefix('job_')}"
    assert raw.headers["x-model-version"] == "1"
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.usage.completion_tokens == 2
    assert completion.usage.completion_tokens_details is not None
    assert completion.usage.completion_tokens_details.reasoning_tokens == 0
    assert (completion.system_fingerprint, completion.service_tier) == (FINGERPRINT, None)


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_says_the_tier_that_was_asked_for(
    api: httpx2.Client, worker: ScriptedWorker, is_stream: bool
) -> None:
    with worker.serve(lambda _: []):
        answer = api.post("/v1/chat/completions", json=CHAT | {"service_tier": "flex", "stream": is_stream})
    (said, *_) = split(answer.content) if is_stream else [answer.content]
    said = said.removeprefix(b"data: ")
    assert json.loads(said)["service_tier"] == "flex"
    (choice,) = json.loads(said)["choices"]
    message = choice["delta" if is_stream else "message"]
    assert (message["role"], message["content"]) == ("assistant", ""), "an empty answer is a message as well"


@pytest.mark.parametrize("with_usage", [False, True])
def test_a_streamed_completion(openai: OpenAI, worker: ScriptedWorker, with_usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if with_usage else {}
    with worker.serve(lambda _: ["wa", "ter ", "wheel"]):
        chunks = list(openai.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, **options))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "wa"), "the first chunk is the first token"
    assert {delta.role for delta in deltas[1:]} == {None}
    assert {(chunk.object, chunk.system_fingerprint) for chunk in chunks} == {("chat.completion.chunk", FINGERPRINT)}
    assert "".join(delta.content or "" for delta in deltas) == "water wheel"
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usages) == with_usage
    if with_usage:
        assert (chunks[-1].choices, usages[0].completion_tokens) == ([], 3)


def test_the_wire_ends_with_done(api: httpx2.Client, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _: ["x"]):
        response = api.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")


def test_tokens_are_streamed_as_they_come(openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str) -> None:
    with openai.chat.completions.create(model="tiny", messages=MESSAGES, stream=True) as stream:
        chunks = iter(stream)
        attempt = worker.claim(_only_job(db, tenant).id)
        for text in ("one", "two"):
            worker.say(attempt, text)
            assert next(chunks).choices[0].delta.content == text
        worker.succeed(attempt, "length")
        assert next(chunks).choices[0].finish_reason == "length"
        assert list(chunks) == []


def test_every_field_reaches_the_job(openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str) -> None:
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    with worker.serve(lambda _: ["x"]):
        openai.chat.completions.create(
            model="tiny@1",
            messages=messages,
            max_completion_tokens=7,
            temperature=0.5,
            top_p=0.9,
            seed=42,
            stop="END",
            presence_penalty=0.1,
            frequency_penalty=0.2,
            n=1,
            logprobs=False,
            response_format={"type": "text"},
            user="ann",
            store=False,
            metadata={"k": "v"},
            service_tier="flex",
            logit_bias={"7": -100, "8": 1.5},
            extra_body={
                "top_k": 5,
                "repetition_penalty": 1.1,
                "min_p": 0.1,
                "min_tokens": 3,
                "stop_token_ids": [10],
                "job": {"priority": 2, "max_attempts": 1},
            },
        )
    job = _only_job(db, tenant)
    assert [(m["role"], m["content"]) for m in job.payload["input"]["messages"]] == [
        ("system", "Be brief."),
        ("user", "ab"),
        ("assistant", "c"),
        ("user", "d"),
    ]
    assert job.payload["sampling"] == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 42,
        "stop": ["END"],
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "ignore_eos": False,
        "min_p": 0.1,
        "min_tokens": 3,
        "stop_token_ids": [10],
        "logit_bias": {"7": -100.0, "8": 1.5},
    }
    assert (job.priority, job.max_attempts, job.metadata, job.service_class) == (2, 1, {"k": "v"}, "batch")


def test_an_answer_of_any_shape_can_be_sent_back(openai: OpenAI, worker: ScriptedWorker) -> None:
    seen: list[Any] = []
    with worker.serve(lambda payload: seen.append(payload["input"]["messages"]) or [""]):
        empty = openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": ""}], stop="x")
        said: Any = [
            empty.choices[0].message.model_dump(),
            {"role": "assistant", "content": None},
            {"role": "assistant", "content": None, "refusal": "No."},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "Never."}]},
        ]
        openai.chat.completions.create(model="tiny", messages=[*said, {"role": "user", "content": "hi"}])
    assert [turn["content"] for turn in seen[0]] == [""]
    assert [turn["content"] for turn in seen[1]] == ["", "", "No.", "Never.", "hi"]


def test_a_chat_goes_before_jobs_unless_told_otherwise(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    with worker.serve(lambda _: ["x"]):
        api.post("/v1/chat/completions", json=CHAT)
    assert _only_job(db, tenant).service_class == "interactive"


def test_the_client_raises_for_a_bad_request(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError) as raised:
        openai.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"best_of": 2})
    assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "best_of")
    with pytest.raises(sdk.NotFoundError) as missing:
        openai.chat.completions.create(model="huge", messages=MESSAGES)
    assert missing.value.code == "model_not_found"


def test_a_failed_job_raises(openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str) -> None:
    def fail() -> None:
        worker.fail(worker.claim(_only_job(db, tenant).id), "numerical_error", "the logits were not finite")

    thread = threading.Thread(target=fail)
    thread.start()
    with pytest.raises(sdk.InternalServerError, match="not finite") as raised:
        openai.chat.completions.create(model="tiny", messages=MESSAGES)
    thread.join()
    assert raised.value.code == "numerical_error"
    assert raised.value.response.headers["x-should-retry"] == "false"


def test_a_job_that_fails_in_a_stream_raises(openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str) -> None:
    received = []
    with openai.chat.completions.create(model="tiny", messages=MESSAGES, stream=True) as stream:
        chunks = iter(stream)
        attempt = worker.claim(_only_job(db, tenant).id)
        worker.say(attempt, "half")
        received.append(next(chunks).choices[0].delta.content)
        worker.fail(attempt, "out_of_memory", "no memory left")
        with pytest.raises(sdk.APIError, match="no memory left"):
            next(chunks)
    assert received == ["half"]


def test_a_failed_stream_is_cut_after_its_error(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    received: list[bytes] = []
    with api.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        worker.fail(worker.claim(_only_job(db, tenant).id), "out_of_memory", "no memory left")
        with pytest.raises(httpx2.RemoteProtocolError):
            received.extend(response.iter_raw())
    body = b"".join(received)
    error = json.loads(body.strip().split(b"data: ")[-1])["error"]
    assert (error["code"], error["type"], error["param"]) == ("out_of_memory", "server_error", None)
    assert error["job_id"] == _only_job(db, tenant).id
    assert b"[DONE]" not in body


@pytest.mark.parametrize(
    ("how", "status", "code"), [("cancelled", 409, "cancelled"), ("expired", 504, "deadline_exceeded")]
)
def test_a_job_that_ends_otherwise_is_no_answer(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str, how: str, status: int, code: str
) -> None:
    def end() -> None:
        job = _only_job(db, tenant)
        if how == "cancelled":
            api.post(f"/v1/jobs/{job.id}/cancel")
        else:
            worker.expire(worker.claim(job.id))

    thread = threading.Thread(target=end)
    thread.start()
    response = api.post("/v1/chat/completions", json=CHAT)
    thread.join()
    assert (response.status_code, error_of(response)["code"]) == (status, code)


def test_a_caller_waits_only_so_long(settings: Settings, model: object, key: str, db: Database) -> None:
    with serving(settings.model_copy(update={"sync_timeout_s": 0.5})) as server:
        response = httpx2.post(
            f"{server.url}/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
    error = error_of(response)
    assert (response.status_code, error["code"]) == (504, "sync_timeout")
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["location"] == f"/v1/jobs/{error['job_id']}"
    assert state_of(db, error["job_id"]) == "queued"


def _leave_in_the_middle(
    api: httpx2.Client, body: dict[str, Any], worker: ScriptedWorker, db: Database, tenant: str
) -> Attempt:
    with api.stream("POST", "/v1/chat/completions", json=body | {"stream": True}):
        attempt = worker.claim(_only_job(db, tenant).id)
        worker.say(attempt, "half")
    return attempt


def test_leaving_a_stream_cancels_its_job(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    attempt = _leave_in_the_middle(api, CHAT, worker, db, tenant)
    assert wait_for(lambda: jobs.get(db, tenant, attempt.claim.job_id).cancel_requested_at, "its cancel is asked for")


def test_leaving_a_stream_may_leave_its_job_alone(
    api: httpx2.Client, server: ApiServer, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    attempt = _leave_in_the_middle(api, CHAT | {"job": {"on_disconnect": "continue"}}, worker, db, tenant)
    wait_for(lambda: not server.runtime.metrics.streams_open.collect()[0].samples[0].value, "the stream is over")
    assert jobs.get(db, tenant, attempt.claim.job_id).cancel_requested_at is None
    worker.succeed(attempt)


def test_leaving_a_call_cancels_its_job(api: httpx2.Client, db: Database, tenant: str) -> None:
    with cut_off(api, "/v1/chat/completions", CHAT):
        wait_for(lambda: num_jobs(db), "the job is stored")
    assert _wait_for_state(db, _only_job(db, tenant).id, "cancelled")


def test_a_second_attempt_that_says_the_same_goes_on(
    openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    with openai.chat.completions.create(model="tiny", messages=MESSAGES, stream=True) as stream:
        chunks = iter(stream)
        first = worker.claim(_only_job(db, tenant).id)
        worker.say(first, "wat", "er wh")
        assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["wat", "er wh"]
        worker.hand_back(first, charge=True)
        second = worker.claim(first.claim.job_id)
        worker.say(second, "water ", "wheel", " turns")
        worker.succeed(second)
        rest = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(rest) == "eel turns"


@some_of(
    2,
    ("num_kept", "then", "rest"),
    [(2, ["el", "s"], "els"), (1, ["er wh", "eel"], "eel"), (0, ["water", " wheel"], "eel"), (1, ["ch"], None)],
)
def test_a_continued_attempt_adds_to_what_was_sent_or_is_an_error(
    openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str, num_kept: int, then: list[str], rest: str | None
) -> None:
    with openai.chat.completions.create(model="tiny", messages=MESSAGES, stream=True) as stream:
        chunks = iter(stream)
        first = worker.claim(_only_job(db, tenant).id)
        worker.say(first, "wat", "er wh")
        assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["wat", "er wh"]
        worker.hand_back(first, charge=True)
        second = worker.go_on(first, num_kept)
        worker.say(second, *then)
        worker.succeed(second)
        if rest is None:
            with pytest.raises(sdk.APIError, match="different text"):
                list(chunks)
        else:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == rest


def test_a_second_attempt_that_says_something_else_is_an_error(
    openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    with openai.chat.completions.create(model="tiny", messages=MESSAGES, stream=True) as stream:
        chunks = iter(stream)
        first = worker.claim(_only_job(db, tenant).id)
        worker.say(first, "water")
        assert next(chunks).choices[0].delta.content == "water"
        worker.hand_back(first, charge=True)
        second = worker.claim(first.claim.job_id)
        worker.say(second, "fire")
        with pytest.raises(sdk.APIError, match="different text"):
            next(chunks)


def test_an_idempotency_key_gives_the_same_answer(api: httpx2.Client, worker: ScriptedWorker, db: Database) -> None:
    headers = {"Idempotency-Key": "k"}
    with worker.serve(lambda _: ["x"]):
        first, second = (api.post("/v1/chat/completions", json=CHAT, headers=headers) for _ in range(2))
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert num_jobs(db) == 1


def test_a_draining_server_cuts_a_chat_and_frees_its_worker(
    api: httpx2.Client, server: ApiServer, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    with api.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        server.drain()
        with pytest.raises(httpx2.RemoteProtocolError):
            response.read()
    assert _wait_for_state(db, _only_job(db, tenant).id, "cancelled")
