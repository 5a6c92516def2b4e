"""One trace of a job whose worker is killed in mid-answer, as a real collector receives it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from headrace.models.fakes.fake import FakeRunner, next_token
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from headrace.store.tracing.tracing import Tracing
from headrace.workers.dispatcher.dispatcher import Dispatcher
from headrace.workers.tasks.generate import GenerateModel
from headrace.workers.worker_runtime import WorkerRuntime
from tests.otlp import Collector, ReceivedSpan
from tests.processes import WAIT_S, StartProcess, wait_for
from tests.producer_api.serving import serving

from .conftest import Bench, worker_command, worker_environment
from .receiver import Receiver

PROMPT = "tell me of the miller's daughter"
NUM_TOKENS = 80
TRACE_ID, CALLER_ID = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174"

# What comes last from each process.
EXPECTED = {"POST /v1/jobs", "accept", "lost attempt fake", "text_completion fake", "finish", "webhook"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def hook() -> Iterator[Receiver]:
    hook = Receiver()
    yield hook
    hook.close()


@contextmanager
def dispatching(settings: Settings, tracing: Tracing) -> Iterator[None]:
    dispatcher = Dispatcher(settings, tracing)
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    try:
        yield
    finally:
        dispatcher.stop()
        thread.join(WAIT_S)
        dispatcher.close()


@contextmanager
def second_worker(bench: Bench, settings: Settings, tracing: Tracing) -> Iterator[None]:
    model = GenerateModel(bench.version, FakeRunner(), ByteTokenizer())
    runtime = WorkerRuntime(settings, model, owner="second", max_jobs=8, tracing=tracing)
    runtime.start()
    try:
        yield
    finally:
        runtime.stop()


def submit(api: httpx2.Client, hook: Receiver, *, flags: str) -> str:
    body = {
        "model": "fake",
        "input": {"prompt": PROMPT},
        "sampling": {"temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True},
        "webhook": {"url": hook.url("/hook?token=of-the-receiver")},
    }
    answer = api.post("/v1/jobs", json=body, headers={"traceparent": f"00-{TRACE_ID}-{CALLER_ID}-{flags}"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.mark.full
def test_one_trace_through_a_killed_worker(
    bench: Bench, settings: Settings, collector: Collector, hook: Receiver, start_process: StartProcess
) -> None:
    changes = {"webhook_allow_http": True, "webhook_allow_networks": ("127.0.0.0/8",), "lease_s": 60.0, "sweep_s": 0.3}
    settings = settings.model_copy(update=changes)
    slow = worker_environment(settings, {"fake_step_ms": 1000, "webhook_allow_networks": ""})
    first = start_process(worker_command("fake"), {**slow, **collector.environment})
    first.wait_event("worker_ready")
    key = api_keys.create_key(bench.db, bench.tenant_id, "all", api_keys.SCOPES - {"admin"}, actor="tests")
    with (
        serving(settings, tracing=collector.tracing("headrace-api")) as server,
        dispatching(settings, collector.tracing("headrace-dispatcher")),
        httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as api,
    ):
        job_id = submit(api, hook, flags="01")
        with api.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            wait_for_delta(response)
        first.signal(signal.SIGKILL)
        first.wait_exit()
        bench.end_leases()
        unsampled = submit(api, hook, flags="00")
        with capture_logs([merge_contextvars]) as said, second_worker(bench, settings, collector.tracing("second")):
            bench.wait_ended([job_id, unsampled])
            hook.wait_calls(2)
    assert bench.job(job_id).state is JobState.SUCCEEDED
    assert {event["trace_id"] for event in said if event["event"] == "job_finished"} == {TRACE_ID}
    wait_for(lambda: {span.name for span in collector.spans()} >= EXPECTED, "the last spans came")
    # The one that is handed back and the last one have the same name, and may come in two messages.
    wait_for(lambda: len(attempts_of(collector.spans())) == 3, "the spans of all attempts came")
    check_trace(collector.spans(), job_id)
    assert not any(text in call.body for call in collector.calls for text in secrets())


def wait_for_delta(response: httpx2.Response) -> None:
    for line in response.iter_lines():
        if line == "event: job.delta":
            return
    raise AssertionError("the stream ended without a delta")


def secrets() -> list[bytes]:
    """What no span may have: the prompt, the answer, the path of the receiver."""
    tokens: list[int] = []
    while len(tokens) < NUM_TOKENS:
        tokens.append(next_token(PROMPT.encode(), tokens, ends=False))
    return [PROMPT.encode(), bytes(tokens[:20]), b"of-the-receiver", b"/hook"]


def attempts_of(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    attempts = [span for span in spans if span.name.endswith(" fake")]
    return sorted(attempts, key=lambda span: span.attributes["headrace.attempt.epoch"])


def check_trace(spans: list[ReceivedSpan], job_id: str) -> None:
    # The parts of the last attempt: it began when the one before it, which ran alone on probation, was handed back.
    by_name = {span.name: span for span in sorted(spans, key=lambda span: span.end_ns)}
    request, accept, webhook = by_name["POST /v1/jobs"], by_name["accept"], by_name["webhook"]
    lost, alone, attempt = attempts_of(spans)
    assert {span.trace_id for span in spans} == {TRACE_ID}
    assert {span.attributes.get("headrace.job.id", job_id) for span in spans} == {job_id}, "the other one is unsampled"
    assert (request.service, request.parent_id, accept.parent_id) == ("headrace-api", CALLER_ID, request.span_id)
    queues = [span for span in spans if span.name == "queue"]
    assert {span.parent_id for span in (lost, alone, attempt, webhook, *queues)} == {accept.span_id}
    assert {span.attributes["headrace.attempt.epoch"] for span in queues} == {1, 2, 3}
    assert all(span.start_ns <= span.end_ns for span in spans)
    assert (lost.service, lost.error, lost.links) == ("headrace-dispatcher", "worker_lost", ())
    assert (alone.service, alone.error, alone.links) == ("second", None, (lost.span_id,))
    assert (attempt.service, attempt.error, attempt.links) == ("second", None, (alone.span_id,))
    outcomes = [span.attributes["headrace.attempt.outcome"] for span in (lost, alone, attempt)]
    assert outcomes == ["worker_lost", "handed_back", "succeeded"]
    for part in ("claim", "prefill", "decode", "finish"):
        assert (by_name[part].service, by_name[part].parent_id) == ("second", attempt.span_id)
        assert attempt.start_ns <= by_name[part].start_ns, part
    assert attempt.attributes["gen_ai.request.model"] == "fake"
    assert attempt.attributes["gen_ai.usage.output_tokens"] == NUM_TOKENS
    assert attempt.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert (webhook.attributes["http.response.status_code"], webhook.error) == (204, None)
