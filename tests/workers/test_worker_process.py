"""A worker process: the pages that it serves, its row and statistics, and how it starts."""

import signal
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from celery import _state, signals
from celery.worker import state
from kombu.pidbox import Node

from headrace.store.db import presence
from headrace.store.redis.celery_queue import TASK
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers import __main__ as process
from headrace.workers import health, worker_app
from headrace.workers.celery.consumer import ReadingNode
from headrace.workers.celery.thread_pool import Drain
from headrace.workers.health import HealthServer
from headrace.workers.presence import PresenceReporter
from headrace.workers.runs.in_flight import Attempt
from tests.processes import free_port, wait_for
from tests.refusals import Naming
from tests.workers.conftest import Bench, StartHost
from tests.workers.runs.test_outcome import CLAIM

ANY: Any = None


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
    shown = [(one.headers["server"], one.headers["content-length"]) for one in found.values()]
    assert shown == [("headrace", str(len(one.content))) for one in found.values()], "no version of any software"
    HealthServer("127.0.0.1", 0, lambda: b"", {}).start()


@pytest.mark.parametrize(("host", "kind"), [("127.0.0.1", "IPv4"), ("localhost", "IPv4"), ("::1", "IPv6")])
def test_the_pages_are_served_on_the_address_that_is_set(host: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, tuple[str, int]]] = []
    server = SimpleNamespace(serve_forever=lambda: None, shutdown=lambda: None, server_close=lambda: None)
    monkeypatch.setattr(health, "ThreadingHTTPServer", lambda at, _handler: made.append(("IPv4", at)) or server)
    monkeypatch.setattr(health, "_Ipv6Server", lambda at, _handler: made.append(("IPv6", at)) or server)
    HealthServer(host, 9101, lambda: b"", {}).start()
    HealthServer(host, 0, lambda: b"", {}).start()
    assert made == [(kind, (host, 9101))]


def test_a_worker_that_drains_is_not_ready(start_host: StartHost) -> None:
    port = free_port()
    host = start_host({"worker_metrics_port": port})
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200, "it is ready")
        host.runtime.drain.requested.set()
        late = client.get("/readyz")
    assert (late.status_code, late.json()["taking"]) == (503, Naming("stopping"))


def test_a_worker_is_idle_without_jobs_and_messages_and_names_the_fault_of_its_engine(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = start_host({"max_step_s": 90.0}).runtime
    is_idle, engine = runtime._drain_keeper._is_idle, runtime._health._checks["engine"]
    held = Attempt(CLAIM, 1.0, None, 1.0)
    assert is_idle()
    ticket = runtime.admission.take()
    assert not is_idle()
    runtime.admission.give_back(ticket)
    runtime.in_flight.add(held)
    assert not is_idle()
    runtime.in_flight.remove(held)
    assert (is_idle(), engine()) == (True, "ok")
    monkeypatch.setattr(type(runtime.engine), "why_not", "its server is away")
    assert (engine(), runtime._presence._is_able()) == ("its server is away", False)
    asked: list[float] = []
    monkeypatch.setattr(runtime.engine, "is_healthy", lambda longest_s: bool(asked.append(longest_s)))
    assert engine() == Naming("90 s")
    assert set(asked) == {90.0}
    monkeypatch.undo()
    runtime.hand_back()
    assert not runtime._is_taking(), "it hands back, also without a request to drain"
    assert (runtime.admission.is_closed, runtime.in_flight.is_closed) == (True, True)


def test_a_worker_that_is_not_able_has_no_row_and_its_adapters_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: dict[str, tuple[str, int | None, int | None]] = {}
    beats = threading.Semaphore(0)
    monkeypatch.setattr("headrace.workers.presence.BEAT_S", 0.0)

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
    monkeypatch.setattr("headrace.workers.__main__.interpreter.settle", lambda: None)
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


class RuntimeOfCelery:
    """Stands for a runtime; notes the calls of Celery's worker."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.drain = Drain(30.0)
        self.adapters = None
        self.admission = None
        self.reported_runner = None
        self.job_runner = SimpleNamespace(run=lambda job_id: self.told.append(("run", job_id)))
        self.metrics = SimpleNamespace(junk=SimpleNamespace(inc=lambda: self.told.append("junk")))

    def end_revoked(self, job_id: str) -> None:
        self.told.append(("end", job_id))


@pytest.mark.parametrize(("control", "node"), [("read", ReadingNode), ("full", Node)])
def test_celery_takes_one_queue_and_one_message_a_thread_and_reports_messages_that_it_discards(
    control: str, node: type[Node], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(worker_app, "_Worker", lambda app, **options: made.append((app, options)))
    for signal_ in (signals.setup_logging, signals.worker_ready, signals.task_revoked):
        monkeypatch.setattr(signal_, "receivers", [])
    # Celery gives the tasks of one app to all apps that come after it.
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    runtime: Any = RuntimeOfCelery()
    given = settings.model_copy(update={"celery_control": control})
    worker_app.build_worker(given, runtime, queue="q@1", hostname="n@h", concurrency=3)
    ((app, options),) = made
    assert options.pop("pool_cls").process is runtime
    assert options == {
        "hostname": "n@h",
        "queues": ["q@1"],
        "concurrency": 3,
        "prefetch_multiplier": 1,
        "task_events": False,
        "quiet": True,
        "loglevel": "WARNING",
        "without_gossip": True,
        "without_mingle": True,
    }
    assert app.control.mailbox.node_cls is node
    assert app.tasks[TASK]("job_1") is None, "a job has no result in Celery"
    for number, ended in enumerate(({}, {"terminated": True}, {"expired": True})):
        signals.task_revoked.send(sender=None, request=SimpleNamespace(id=f"job_{number}"), **ended)
    assert runtime.told == [("run", "job_1"), ("end", "job_0")]
    assert len(signals.setup_logging.receivers) == 1, "Celery leaves the logs as they are"


def test_each_stop_signal_drains_and_the_second_ends_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[Callable[[], None], object]] = []
    monkeypatch.setattr(worker_app, "on_stop_signals", lambda stop, numbers: heard.append((stop, numbers)))
    monkeypatch.setattr(state, "should_stop", None)
    runtime: Any = RuntimeOfCelery()
    worker_app.drain_on_signals(runtime)
    ((stop, numbers),) = heard
    assert numbers == (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    stop()
    assert (state.should_stop, runtime.drain.requested.is_set(), runtime.drain.remaining_s > 0) == (0, True, True)
    stop()
    assert runtime.drain.remaining_s == 0
