"""A worker stops in the middle of an answer and another one continues it: the client's view, and the stored rows."""

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import redis

from headrace.models.fakes.fake import next_token
from headrace.store.jobs import jobs
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.processes import wait_for
from tests.producer_api.calling import Sse, parse
from tests.producer_api.serving import serving

from .conftest import Bench, Duties, StartWorker

PROMPT = "tell me of the mill"
NUM_TOKENS = 260


def answer(prompt: str = PROMPT) -> str:
    tokens: list[int] = []
    while len(tokens) < NUM_TOKENS:
        tokens.append(next_token(prompt.encode(), tokens, ends=False))
    return bytes(tokens).decode()


@pytest.fixture
def api(bench: Bench, settings: Settings) -> Iterator[httpx2.Client]:
    key = api_keys.create_key(bench.db, bench.tenant_id, "all", api_keys.SCOPES - {"admin"}, actor="tests")
    with serving(settings.model_copy(update={"response_cache": "asked"})) as server:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client:
            yield client


@dataclass
class Reader:
    """A client that reads one stream to its end, on a thread of its own."""

    body: bytearray = field(default_factory=bytearray)
    headers: dict[str, str] = field(default_factory=dict)

    def read(self, api: httpx2.Client, method: str, path: str, body: Any = None) -> "Reader":
        def run() -> None:
            with api.stream(method, path, json=body) as response:
                self.headers.update(response.headers)
                for chunk in response.iter_raw():
                    self.body += chunk

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        return self

    def wait_for(self, text: bytes, times: int) -> None:
        wait_for(
            lambda: self.body.count(text) >= times, f"the reader has {times} {text!r}: {bytes(self.body[-200:])!r}"
        )

    def rest(self) -> bytes:
        self._thread.join(90)
        assert not self._thread.is_alive()
        return bytes(self.body)


def submit(api: httpx2.Client, *, cache: str = "bypass", **sampling: Any) -> str:
    body = {
        "model": "fake",
        "input": {"prompt": PROMPT},
        "sampling": {"temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True, **sampling},
    }
    response = api.post("/v1/jobs", json=body, headers={"Headrace-Cache": cache})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def check_stored(bench: Bench, job_id: str) -> None:
    job = bench.job(job_id)
    assert (job.state, (job.output or {})["text"]) == (JobState.SUCCEEDED, answer())
    stored = jobs.stored_deltas(bench.db, bench.tenant_id, job_id)
    assert stored is not None
    assert "".join(stored.deltas) == answer()
    assert (job.usage or {})["output_tokens"] == NUM_TOKENS
    assert bench.query("SELECT count(*) AS n FROM job_checkpoints")[0].n == 0


def check_gapless(events: list[Sse]) -> None:
    """Every delta once, in order, whichever attempts they are of, and no event in between."""
    names = [event.name for event in events]
    deltas = [event for event in events if event.name == "job.delta"]
    assert names == ["job.queued", "job.started", *["job.delta"] * len(deltas), "job.succeeded"]
    assert [int(event.id.split("-")[1]) for event in deltas] == list(range(1, len(deltas) + 1))
    epochs = [int(event.id.split("-")[0]) for event in deltas]
    assert epochs == sorted(epochs)
    assert epochs[0] < epochs[-1], "nobody went on"
    assert "".join(event.data["text"] for event in deltas) == answer()


def check_logprobs(bench: Bench, job_id: str, events: list[Sse]) -> None:
    """Each delta brings those of its own tokens, and the output has all of them, whichever attempts they are of."""
    deltas = [event.data for event in events if event.name == "job.delta"]
    for delta in deltas:
        assert [bytes(one["bytes"]).decode() for one in delta["logprobs"]] == list(delta["text"])
    told = [one for delta in deltas for one in delta["logprobs"]]
    assert (bench.job(job_id).output or {})["logprobs"] == told
    assert all(one["top_logprobs"] == [{name: one[name] for name in ("token", "logprob", "bytes")}] for one in told)


def check_first_token(api: httpx2.Client, job_id: str, known: list[bool]) -> None:
    """The job's first token came in its first attempt. ``known``: whether each attempt's own is."""
    timeline = api.get(f"/v1/jobs/{job_id}/timeline").json()
    began, attempts = timeline["events"][0]["at"], timeline["attempts"]
    first_at = began + api.get(f"/v1/jobs/{job_id}").json()["usage"]["first_token_ms"] / 1000
    assert attempts[0]["started_at"] <= first_at <= attempts[0]["ended_at"]
    assert [one["first_token_ms"] is not None for one in attempts] == known


def test_a_killed_worker_leaves_no_gap(
    bench: Bench, duties: Duties, api: httpx2.Client, start_worker: StartWorker
) -> None:
    worker = start_worker(fake_step_ms=50)
    job_id = submit(api, logprobs=1)
    reader = Reader().read(api, "GET", f"/v1/jobs/{job_id}/events")
    reader.wait_for(b"job.delta", 40)
    worker.signal(signal.SIGKILL)
    worker.wait_exit()
    bench.end_leases()
    second = start_worker(fake_step_ms=1)
    events = parse(reader.rest())
    check_gapless(events)
    check_stored(bench, job_id)
    check_logprobs(bench, job_id, events)
    job = bench.job(job_id)
    assert (job.epoch, job.attempt) == (3, 2), "alone for a few tokens, which is not charged, and then in company"
    check_first_token(api, job_id, [False, True, True])
    (resumed,) = second.events("attempt_resumes")
    assert resumed["num_deltas"] >= 40
    assert [event["cleared"] for event in second.events("attempt_released")] == [True]
    late = parse(Reader().read(api, "GET", f"/v1/jobs/{job_id}/events").rest())
    assert "".join(event.data["text"] for event in late if event.name == "job.delta") == answer()
    check_logprobs(bench, job_id, late)


@pytest.mark.full
def test_a_hundred_equal_requests_are_computed_once_although_the_worker_is_killed(
    bench: Bench, duties: Duties, api: httpx2.Client, start_worker: StartWorker
) -> None:
    worker = start_worker(fake_step_ms=200)  # it is far from its end when all have come
    source, sharer = submit(api, cache="use"), submit(api, cache="use")
    reader = Reader().read(api, "GET", f"/v1/jobs/{sharer}/events")
    reader.wait_for(b"job.delta", 4)
    with ThreadPoolExecutor(16) as pool:
        ids = [source, sharer, *pool.map(lambda _: submit(api, cache="use"), range(98))]
    worker.signal(signal.SIGKILL)
    worker.wait_exit()
    bench.end_leases()
    start_worker(fake_step_ms=1)
    check_gapless(parse(reader.rest()))
    for job_id in ids:
        check_stored(bench, job_id)
    attempts = bench.query("SELECT DISTINCT job_id FROM attempts")
    assert [row.job_id for row in attempts] == [source]
    assert bench.query("SELECT count(*) AS n FROM job_terminal")[0].n == 100


@pytest.mark.full
def test_a_drained_worker_hands_on_what_it_had_even_if_redis_forgets(
    bench: Bench,
    duties: Duties,
    api: httpx2.Client,
    start_worker: StartWorker,
    redis_client: redis.Redis,
) -> None:
    worker = start_worker(fake_step_ms=50, drain_s=0.3)
    job_id = submit(api, logprobs=1)
    reader = Reader().read(api, "GET", f"/v1/jobs/{job_id}/events")
    reader.wait_for(b"job.delta", 40)
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit() == 0
    (kept,) = bench.query("SELECT jsonb_array_length(deltas) AS n, lineage FROM job_checkpoints")
    assert (kept.n >= 40, kept.lineage) == (True, [[1, 0]])
    (handed_back,) = worker.events("handed_back")
    assert (handed_back["num_jobs"], handed_back["num_without_progress"]) == (1, 0)
    redis_client.flushall()
    start_worker(fake_step_ms=1)
    events = parse(reader.rest())
    check_gapless(events)
    check_stored(bench, job_id)
    check_logprobs(bench, job_id, events)
    assert bench.job(job_id).attempt == 1, "a drain is not charged"
    check_first_token(api, job_id, [True, True])


@pytest.mark.full
def test_where_the_tail_is_lost_with_the_worker_the_reader_is_told(
    bench: Bench,
    duties: Duties,
    api: httpx2.Client,
    start_worker: StartWorker,
    redis_client: redis.Redis,
) -> None:
    worker = start_worker(fake_step_ms=50)
    job_id = submit(api)
    reader = Reader().read(api, "GET", f"/v1/jobs/{job_id}/events")
    reader.wait_for(b"job.delta", 40)
    worker.signal(signal.SIGKILL)
    worker.wait_exit()
    bench.end_leases()
    redis_client.flushall()
    start_worker(fake_step_ms=1)
    events = parse(reader.rest())
    restarts = [index for index, event in enumerate(events) if event.name == "job.restarted"]
    assert len(restarts) == 1
    assert (events[restarts[0]].id, events[restarts[0]].data["kept"]) == ("2-0", 0)
    after = [event.data["text"] for event in events[restarts[0] :] if event.name == "job.delta"]
    assert "".join(after) == answer()
    check_stored(bench, job_id)


@pytest.mark.full
def test_a_chat_stream_goes_on_as_if_nothing_had_happened(
    bench: Bench, duties: Duties, api: httpx2.Client, start_worker: StartWorker
) -> None:
    worker = start_worker(fake_step_ms=50)
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 100,
        "seed": 3,
        "stream": True,
    }
    reader = Reader().read(api, "POST", "/v1/chat/completions", body)
    reader.wait_for(b'"content"', 4)
    worker.signal(signal.SIGKILL)
    worker.wait_exit()
    bench.end_leases()
    start_worker(fake_step_ms=1)
    chunks = reader.rest().decode().split("\n\n")
    assert chunks[-2:] == ["data: [DONE]", ""]
    parts = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks[:-2] if chunk.startswith("data")]
    text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    job = bench.job(reader.headers["x-job-id"])
    assert (job.output or {})["text"] == text != ""
    assert job.epoch > 1


@pytest.mark.full
def test_a_worker_that_was_paused_adds_nothing_to_what_the_next_one_took_over(
    bench: Bench, duties: Duties, api: httpx2.Client, start_worker: StartWorker
) -> None:
    worker = start_worker(fake_step_ms=50)
    job_id = submit(api)
    reader = Reader().read(api, "GET", f"/v1/jobs/{job_id}/events")
    reader.wait_for(b"job.delta", 40)
    worker.signal(signal.SIGSTOP)
    bench.end_leases()
    second = start_worker(fake_step_ms=20)
    second.wait_event("attempt_released")
    worker.signal(signal.SIGCONT)
    check_gapless(parse(reader.rest()))
    check_stored(bench, job_id)
