"""Jobs of a version behind a server of chat completions, from the queue to the outcome, with a real worker."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.models.external_registration import register_external
from headrace.store.db.database import Database
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tracing.tracing import TraceContext, attempt_span_id
from tests.models.external.fake_chat import MODEL, ON_AND_ON, FakeChat
from tests.models.external.fake_model import EOS, answer
from tests.otlp import Collector
from tests.processes import Process, StartProcess, wait_for
from tests.workers.conftest import Bench, Duties, worker_command, worker_environment


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[FakeChat]:
    """Its parameter: it goes on with an answer."""
    continues = getattr(request, "param", False)
    server = FakeChat(continues=continues, writes_usage=not continues)
    yield server
    server.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def bench(db: Database, settings: Settings, server: FakeChat) -> Iterator[Bench]:
    spec = EngineSpec(
        kind=EngineKind.OPENAI,
        url=server.url,
        served_model=MODEL,
        context_window=2048,
        continues=server.continues or None,
    )
    bench = Bench(db, settings, register_external(db, "served", spec, source=None, tokenizer=None, actor="tests"))
    duties = Duties(bench)
    duties.start()
    yield bench
    duties.stop()
    bench.close()


@pytest.fixture
def start_worker(settings: Settings, start_process: StartProcess, tmp_path: Path) -> Callable[..., Process]:
    environment = worker_environment(settings, {"home": tmp_path / "home", "lease_s": 60})
    return lambda **more: start_process(worker_command("served"), environment | more)


def submit(bench: Bench, content: str, max_tokens: int = 40, **changes: object) -> str:
    source = {"messages": [{"role": "user", "content": content}]}
    payload = {"input": source, "sampling": {"max_tokens": max_tokens, "temperature": 0}}
    (job_id,) = bench.submit(payload=payload, **changes)
    return job_id


def text_of(content: str, max_tokens: int) -> str:
    tokens = answer(content.encode(), max_tokens, ignore_eos=content.startswith(ON_AND_ON))
    return bytes(token for token in tokens if token != EOS).decode()


def test_a_job_has_the_servers_text_and_counts_and_a_busy_server_charges_nothing(
    bench: Bench, server: FakeChat, start_worker: Callable[[], Process]
) -> None:
    server.refusals = [(429, {"retry-after": "1"}, {"error": {"message": "slow down"}})] * 4
    start_worker()
    job_id = submit(bench, "a mill", traceparent=TraceContext("a" * 32, "b" * 16, is_sampled=True).header)
    (job,) = bench.wait_ended([job_id])
    assert (job.state, job.attempt, server.refusals) == (JobState.SUCCEEDED, 1, [])
    assert server.traced == [], "the worker writes no traces"
    assert (job.output or {})["text"] == text_of("a mill", 40)
    usage = job.usage or {}
    assert (usage["input_tokens"], usage["output_tokens"]) == (1234, 567)


@pytest.mark.full
def test_an_attempt_that_lost_its_worker_starts_anew(
    bench: Bench, server: FakeChat, start_worker: Callable[[], Process]
) -> None:
    server.step_s = 0.1
    worker, content = start_worker(), f"{ON_AND_ON}a mill"
    job_id = submit(bench, content, max_tokens=100)
    wait_for(lambda: server.num_tokens > 20, "text comes")
    worker.signal(signal.SIGKILL)
    wait_for(lambda: len(server.aborted) == 1, "the server has ended the request of the dead worker")
    bench.end_leases()
    server.step_s = 0.01
    start_worker()
    (job,) = bench.wait_ended([job_id])
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert (job.output or {})["text"] == text_of(content, 100)
    assert [call.body["messages"] for call in server.calls] == [[{"role": "user", "content": content}]] * 2


@pytest.mark.parametrize("server", [True], indirect=True)
@pytest.mark.parametrize("lost", ["server", "worker"])
def test_an_answer_goes_on_where_its_server_or_its_worker_was_lost(
    bench: Bench, server: FakeChat, start_worker: Callable[[], Process], lost: str
) -> None:
    server.step_s = 0.1
    worker, content = start_worker(), f"{ON_AND_ON}a mill"
    job_id = submit(bench, content, max_tokens=100)
    wait_for(lambda: server.num_tokens > 50, "text comes, after the two questions of the worker")
    if lost == "server":
        server.restart(away_s=0.1)
    else:
        worker.signal(signal.SIGKILL)
        bench.end_leases()
        start_worker()
    server.step_s = 0.01
    (job,) = bench.wait_ended([job_id])
    assert (job.state, (job.output or {})["text"]) == (JobState.SUCCEEDED, text_of(content, 100))
    assert ((job.usage or {})["input_tokens"], (job.usage or {})["output_tokens"]) == (len(content), 100)
    begun = server.calls[-1].body["messages"][-1]
    assert begun["role"] == "assistant"
    assert text_of(content, 100).startswith(begun["content"])
    assert server.calls[-1].max_tokens < 100


@pytest.mark.full
def test_the_server_gets_the_trace_of_the_attempt_if_tracing_is_on(
    bench: Bench, server: FakeChat, start_worker: Callable[..., Process], collector: Collector
) -> None:
    start_worker(**collector.environment)
    sampled, unsampled = (TraceContext(char * 32, char * 16, is_sampled=char == "a") for char in "ab")
    job_ids = [submit(bench, name, traceparent=trace.header) for name, trace in (("a", sampled), ("b", unsampled))]
    bench.wait_ended(job_ids)
    expected = [
        trace.child(attempt_span_id(job_id, 1)).header
        for job_id, trace in zip(job_ids, (sampled, unsampled), strict=True)
    ]
    assert sorted(server.traced) == sorted(("/v1/chat/completions", header) for header in expected)
