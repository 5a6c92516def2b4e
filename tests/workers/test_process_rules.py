"""A worker process around its parts: what it tells people and probes, how it is verified, and how it starts."""

import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest

from models.engine.requests import Delta
from store.db import presence
from store.errors import CannotLoadHere, ModelLoadError, Unavailable, VersionRejected
from store.redis.live_workers import KEEP_S, WorkerSnapshot, WorkerTick
from store.registry.models import ModelVersion
from store.registry.verification import VersionStanding
from store.registry.verification_report import GoldenAnswer, VerificationReport
from store.schema.version_states import VersionState
from store.settings import Settings
from tests.processes import free_port, wait_for
from tests.workers.conftest import Bench, StartHost
from tests.workers.engine_stub import IDLE, EngineStub
from tests.workers.runs.test_outcome import CLAIM
from workers import __main__ as process
from workers import live_reporter, verification
from workers.health import HealthServer
from workers.live_reporter import LiveReporter, TokenCounts
from workers.presence import PresenceReporter
from workers.quality import UNMEASURED
from workers.runs.in_flight import Attempt, AttemptId, InFlightAttempts
from workers.tasks.self_test import SelfTest
from workers.tasks.task_model import TaskModel
from workers.verification import load_served, load_verified

ANY: Any = None


class Busy(EngineStub):
    """An engine with two requests, of which one waits."""

    def stats(self) -> Any:
        return replace(IDLE, running=1, waiting=1, free_blocks=3, total_blocks=8)


JOB_SHOWN = {"tenant_id": "ten_1", "class_rank": 1, "attempt": 2, "age_s": 6.0, "input_tokens": 3}
FIRST_SNAPSHOT = {
    "id": "w1",
    "queue": "fake@1",
    "engine": "vLLM",
    "slots": 4,
    "running": 1,
    "waiting": 1,
    "free_blocks": 3,
    "total_blocks": 8,
    "lease_s": 10.0,
    "lease_age_s": 6.0,
    "jobs": [
        {"id": "job_0", **JOB_SHOWN, "output_tokens": 2, "max_tokens": 30},
        {"id": "job_1", **JOB_SHOWN, "output_tokens": 0, "max_tokens": 0},
    ],
    "quiet_s": 4.0,
    "kept_s": KEEP_S,
    "is_reserved": False,
}
TICK = WorkerTick(
    worker="w1",
    queue="fake@1",
    tokens={"ten_1": 2, "": 1},
    first_token_ms={"ten_1": [2500.0]},
    running=1.0,
    slots=4,
)


class StepwisePublisher:
    """Keeps what is published, and holds each publication until the test lets it go."""

    def __init__(self) -> None:
        self.told: list[tuple[WorkerSnapshot, WorkerTick | None]] = []
        self.withdrawn: list[str] = []
        self.may_go = threading.Semaphore(0)

    def publish(self, snapshot: WorkerSnapshot, tick: WorkerTick | None) -> None:
        self.told.append((snapshot, tick))
        self.may_go.acquire(timeout=30)

    def withdraw(self, owner: str) -> None:
        self.withdrawn.append(owner)


def two_attempts(counts: TokenCounts, in_flight: InFlightAttempts) -> None:
    """Add two attempts since 98 s, of which one was renewed at 99 s, and count tokens of the other."""
    for number, payload in enumerate(({"sampling": {"max_tokens": 30}}, {})):
        in_flight.add(Attempt(replace(CLAIM, job_id=f"job_{number}", payload=payload), 98.0, None, 98.0))
    in_flight.renewed(frozenset({"job_1"}), 99.0)
    counts.count([Delta(AttemptId("job_0", 4), 1, "x", (1, 2)), Delta(AttemptId("gone", 1), 1, "x", ())])


def test_a_snapshot_has_each_job_and_a_tick_the_tokens_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_reporter, "PERIOD_S", 0.0)
    now, in_flight = [100.0], InFlightAttempts()
    counts = TokenCounts(in_flight, clock=lambda: now[0])
    two_attempts(counts, in_flight)
    publisher: Any = StepwisePublisher()
    reporter = LiveReporter(
        publisher,
        Busy(),
        in_flight,
        counts,
        owner="w1",
        queue="fake@1",
        slots=4,
        lease_s=10.0,
        engine_description=lambda: "vLLM",
        clock=lambda: now[0],
    )
    now[0] = 104.0
    reporter.start()
    wait_for(lambda: len(publisher.told) == 1, "the first snapshot")
    now[0] = 105.0
    publisher.may_go.release()
    wait_for(lambda: len(publisher.told) == 2, "the second snapshot, with a tick")
    stop = threading.Thread(target=reporter.stop)
    stop.start()
    publisher.may_go.release(1000)
    wait_for(lambda: publisher.withdrawn == ["w1"], "it withdraws its snapshot")
    stop.join(30)
    first, tick = publisher.told[0]
    assert (first.model_dump(), tick) == (FIRST_SNAPSHOT, None)
    assert publisher.told[1][1] == TICK


def test_the_pages_of_a_process_and_no_other(settings: Settings) -> None:
    problem = ["ok"]
    port = free_port()
    server = HealthServer("127.0.0.1", port, lambda: b"a_metric 1\n", {"loop": lambda: problem[0]})
    server.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            found = {path: client.get(path) for path in ("/healthz", "/readyz?verbose", "/metrics", "/", "/readyz/x")}
            problem[0] = "it hangs"
            late = client.get("/readyz")
    finally:
        server.stop()
    assert [(one.status_code, one.text) for one in found.values()] == [
        (200, '{"status":"ok"}'),
        (200, '{"status":"ready","loop":"ok"}'),
        (200, "a_metric 1\n"),
        *[(404, '{"status":"not found"}')] * 2,
    ]
    assert (late.status_code, late.json()) == (503, {"status": "not ready", "loop": "it hangs"})
    assert found["/metrics"].headers["content-type"].startswith("text/plain; version=")
    HealthServer("127.0.0.1", 0, lambda: b"", {}).start()


def test_a_worker_that_is_not_able_has_no_row_and_its_adapters_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: dict[str, tuple[str, int | None, int | None]] = {}
    beats = threading.Semaphore(0)
    monkeypatch.setattr("workers.presence.BEAT_S", 0.0)

    def beat(_db: Any, row: str, queue: str, capacity: int | None, *, slots: int | None) -> None:
        rows[row] = (queue, capacity, slots)

    def leave(_db: Any, row: str) -> None:
        rows.pop(row, None)

    monkeypatch.setattr(presence, "beat_worker", beat)
    monkeypatch.setattr(presence, "leave_worker", leave)
    is_able, adapters, is_taking = [True], [("lora@1",)], [True]

    def taking() -> bool:
        beats.release()
        return is_taking[0]

    reporter = PresenceReporter(
        ANY,
        "base@1",
        lambda: 512,
        is_taking=taking,
        is_able=lambda: is_able[0],
        adapters=lambda: adapters[0],
        slots=8,
    )

    def shown() -> list[tuple[str, int | None, int | None]]:
        return sorted(rows.copy().values())

    reporter.start()
    assert shown() == [("base@1", 512, 8), ("lora@1", 512, 8)]
    adapters[0] = ("other@2",)
    wait_for(lambda: [name for name, _, _ in shown()] == ["base@1", "other@2"], "the adapter that is gone has no row")
    is_able[0] = False
    wait_for(lambda: shown() == [], "nothing can run")
    is_able[0] = True
    wait_for(lambda: len(shown()) == 2, "it can run again")
    is_taking[0] = False
    wait_for(lambda: shown() == [], "it stops")
    reporter.stop()


def test_the_statistics_of_the_engine_have_their_names(bench: Bench, start_host: StartHost) -> None:
    running = start_host()
    running.run_to_end(*bench.submit(2, prompt="a beginning of more than sixteen tokens"))
    runtime = running.runtime
    stats, info = runtime.engine.stats(), dict(runtime.engine_info())
    assert float(info.pop("output tokens per second since start")) > 0
    assert (stats.completed, stats.output_tokens, stats.prompt_tokens > 0) == (2, 32, True)
    runtime.frames.flush(30)
    assert info == {
        "model version": "fake@1",
        "model digest": "0" * 12,
        "inference server": "",
        "engine steps": stats.steps,
        "requests running": 0,
        "requests waiting": 0,
        "KV blocks free": stats.free_blocks,
        "KV blocks total": stats.total_blocks,
        "slots": bench.settings.max_slots,
        "slots beside them, for jobs that go ahead": bench.settings.max_slots // 4,
        "batch mean": round(stats.mean_batch, 2),
        "batch peak": stats.peak_batch,
        "prompt tokens": stats.prompt_tokens,
        "output tokens": 32,
        "completed": 2,
        "failed": 0,
        "preempted": 0,
        "prompt tokens found in the KV cache": stats.cached_tokens,
        "KV blocks evicted": stats.evicted_blocks,
        "tokens guessed": stats.drafted_tokens,
        "guesses that were right": stats.accepted_tokens,
        "frames published": info["frames published"],
        "frames dropped": 0,
        "leases lost": 0,
    }


class Standing:
    """The verification of ``tiny@1`` in a registry that answers as a test says; it notes what it is told."""

    name, worker, lease_s = "tiny@1", "w1", 60.0

    def __init__(self, *answers: VersionStanding, holds: bool = True) -> None:
        self.answers = [*answers]
        self.holds = holds
        self.told: list[tuple[Any, ...]] = []

    def claim(self) -> VersionStanding:
        return self.answers.pop(0)

    def renew(self) -> bool:
        return True

    def give_up(self, reason: str) -> None:
        self.told.append(("given up", reason))

    def accept(self, report: VerificationReport) -> bool:
        self.told.append(("accepted", report))
        return self.holds

    def reject(self, reason: str, report: VerificationReport) -> bool:
        self.told.append(("rejected", reason))
        return self.holds


OURS = VersionStanding(VersionState.REGISTERED, None, (), True)
THEIRS = replace(OURS, is_ours=False)
READY = VersionStanding(VersionState.READY, None, (), False)
REJECTED = VersionStanding(VersionState.REJECTED, "its weights are pickled", (), False)


class Model:
    """A loaded model with the result of its self-test."""

    def __init__(self, test: SelfTest | Exception) -> None:
        self.test = test
        self.is_closed = False

    def self_test(self, _settings: Settings, _golden: Any) -> SelfTest:
        if isinstance(self.test, Exception):
            raise self.test
        return self.test

    def close(self) -> None:
        self.is_closed = True


def verified(standing: Standing, load: Callable[[], Any]) -> TaskModel:
    given: Any = standing
    return load_verified(given, load, Settings(), UNMEASURED)


def raising(error: Exception) -> Callable[[], TaskModel]:
    def load() -> TaskModel:
        raise error

    return load


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "LOOK_S", 0.0)


ANSWERS = (GoldenAnswer(prompt="x", tokens=(1,)),)


@pytest.mark.parametrize(("golden", "told"), [((), "recorded"), (ANSWERS, "matched")])
def test_a_version_that_passes_is_accepted_with_its_figures(golden: Any, told: str) -> None:
    model = Model(SelfTest(ANSWERS, "float32", 12.345, 64))
    standing = Standing(THEIRS, replace(OURS, golden=golden))
    assert verified(standing, lambda: model) is cast(Any, model)
    ((verb, report),) = standing.told
    assert (verb, report.worker, report.dtype, report.tokens_per_s, report.context_tokens) == (
        "accepted",
        "w1",
        "float32",
        12.3,
        64,
    )
    assert (report.golden, report.answers, report.quality) == (told, ANSWERS, None)
    assert report.memory_bytes > 1 << 20
    assert not model.is_closed


def test_a_version_with_a_fault_is_rejected_and_its_model_is_freed() -> None:
    model = Model(SelfTest(fault="token 1 is another"))
    standing = Standing(OURS)
    with pytest.raises(VersionRejected) as rejected:
        verified(standing, lambda: model)
    assert rejected.value.message == "tiny@1 was rejected: token 1 is another"
    assert (standing.told, model.is_closed) == ([("rejected", "token 1 is another")], True)
    standing = Standing(OURS)
    with pytest.raises(VersionRejected, match="tiny@1 was rejected: the files are others"):
        verified(standing, raising(ModelLoadError("the files are others")))
    assert standing.told == [("rejected", "the files are others")]
    standing = Standing(REJECTED)
    with pytest.raises(VersionRejected, match="tiny@1 was rejected: its weights are pickled"):
        verified(standing, raising(AssertionError("not loaded")))


def test_a_machine_that_cannot_load_a_version_gives_it_up() -> None:
    standing = Standing(OURS)
    with pytest.raises(CannotLoadHere, match="too little memory"):
        verified(standing, raising(CannotLoadHere("too little memory")))
    assert standing.told == [("given up", "too little memory")]


def test_a_verdict_that_comes_too_late_is_forgotten_and_that_of_another_counts() -> None:
    late, model = Model(SelfTest()), Model(SelfTest())
    loads = iter([late, model])
    standing = Standing(OURS, READY, holds=False)
    assert verified(standing, lambda: next(loads)) is cast(Any, model)
    faulty = Model(SelfTest(fault="a fault"))
    standing = Standing(OURS, REJECTED, holds=False)
    with pytest.raises(VersionRejected, match="its weights are pickled"):
        verified(standing, lambda: faulty)
    assert faulty.is_closed


def test_a_version_on_a_server_is_given_up_if_its_server_cannot_be_used_and_rejected_by_nobody() -> None:
    ready: Any = Standing(READY)
    model: Any = Model(SelfTest())
    assert load_served(ready, lambda note: note("described") or model, Settings()) is model
    rejected: Any = Standing(REJECTED)
    with pytest.raises(VersionRejected, match="its weights are pickled"):
        load_served(rejected, lambda _note: model, Settings())
    ours: Any = Standing(OURS)
    with pytest.raises(ModelLoadError, match="another model"):
        load_served(ours, lambda _note: raising(ModelLoadError("another model"))(), Settings())
    assert ours.told == [("given up", "another model")]
    away: Any = Standing(OURS)
    with pytest.raises(Unavailable):
        load_served(away, lambda _note: raising(Unavailable("away"))(), Settings())
    assert away.told == []


class Started:
    """Stands for a runtime and Celery's worker; notes how they were made and used."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.done: list[str] = []
        self.exitcode = 7

    def runtime(self, settings: Settings, model: Any, **options: Any) -> "Started":
        self.given.append((settings.max_slots, options))
        return self

    def worker(self, _settings: Settings, _runtime: Any, **options: Any) -> Any:
        self.given.append(options)
        return SimpleNamespace(start=lambda: self.done.append("celery"), exitcode=self.exitcode)

    def start(self) -> None:
        self.done.append("start")

    def stop(self) -> None:
        self.done.append("stop")


@pytest.mark.parametrize(("concurrency", "name", "threads"), [(None, None, 24), (3, "mine", 3)])
def test_a_worker_has_twice_as_many_threads_as_slots(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch, concurrency: int | None, name: str | None, threads: int
) -> None:
    started = Started()
    monkeypatch.setattr(process, "WorkerRuntime", started.runtime)
    monkeypatch.setattr(process, "build_worker", started.worker)
    monkeypatch.setattr(process, "drain_on_signals", lambda _runtime: started.done.append("signals"))
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    monkeypatch.setattr("os.getpid", lambda: 42)
    monkeypatch.setattr("workers.__main__.interpreter.settle", lambda: None)
    model: Any = SimpleNamespace(version=version, queue="fake@1", close=lambda: started.done.append("close"))
    assert process.run(Settings(max_slots=12), model, name=name, concurrency=concurrency) == 7
    hostname = f"{name or 'fake-42'}@box"
    (slots, options), of_celery = started.given
    assert (slots, options["max_jobs"], options["owner"][: len(hostname) + 4]) == (12, threads, f"{hostname}:42:")
    assert of_celery == {"queue": "fake@1", "hostname": hostname, "concurrency": threads}
    assert started.done == ["signals", "start", "celery", "stop", "close"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "--model"),
        (["--model", "a", "--concurrency", "0"], "at least 1"),
        (["--model", "a", "--engine", "native"], "invalid choice"),
    ],
)
def test_wrong_arguments_of_a_worker_are_refused(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        process.main(argv)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_the_settings_that_suit_a_device_are_those_that_nobody_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    model = SimpleNamespace(default_settings={"max_slots": 256, "step_tokens": 9})
    given = Settings(database_url="postgresql://x@y/z", redis_url="redis://y", step_tokens=700)
    monkeypatch.setattr(process, "load_settings", lambda: given)
    monkeypatch.setattr(process, "configure_logging", lambda _level: None)
    monkeypatch.setattr(process, "load", lambda settings, name, server: ran.append((name, server)) or model)
    monkeypatch.setattr(process, "run", lambda settings, model, **options: ran.append((settings, options)) or 0)
    assert process.main(["--model", "a@2", "--name", "n", "--engine", "vllm", "--", "--seed", "3"]) == 0
    (name, server), (settings, options) = ran
    assert (name, server.kind, server.arguments, server.url) == ("a@2", "vllm", ("--seed", "3"), None)
    assert (settings.max_slots, settings.step_tokens) == (256, 700)
    assert (options["name"], options["concurrency"]) == ("n", None)
