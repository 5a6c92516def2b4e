"""Workers of versions that an inference server runs: the operator's server, and one that the worker starts."""

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.models.external_registration import register_external
from headrace.store.child_process import still_alive
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, ModelLoadError, SettingsError
from headrace.store.jobs import jobs
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import ModelVersion, read_file
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.workers.celery.watchdog import EXIT_ENGINE_DEAD
from headrace.workers.tasks.generate_external import ServerStart, load_external_model
from tests.models.external.fake_vllm import MODEL, FakeVllm
from tests.models.external.served import bytes_folder, fake_engine_python
from tests.processes import Process, StartProcess, free_port, wait_for
from tests.workers.conftest import Bench, Duties, worker_command, worker_environment


@dataclass(frozen=True)
class Served:
    """A worker process, and where its health page is."""

    process: Process
    url: str

    def readiness(self) -> dict[str, str]:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            body = error.read()
        except OSError:
            return {"engine": "not there"}
        result: dict[str, str] = json.loads(body)
        return result

    def wait_engine(self, words: str) -> None:
        """Wait until the check of the engine says this. Fails at once if the worker ends."""

        def said() -> bool:
            assert self.process.exit_code is None, self.process.log()
            return words in self.readiness()["engine"]

        wait_for(said, lambda: f"{self.readiness()}\n{self.process.log()}")


StartServed = Callable[..., Served]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return bytes_folder(tmp_path / "bytes")


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    server = FakeVllm(context_window=512)
    yield server
    server.close()


def registered(db: Database, files: Path, **engine: Any) -> ModelVersion:
    """Register ``served@1``, on a server at ``url`` or on one that the worker starts."""
    spec = EngineSpec(kind=EngineKind.VLLM, served_model=MODEL, **engine)
    source = None if spec.url else files
    return register_external(db, "served", spec, source=source, tokenizer=files, actor="tests")


@pytest.fixture
def serve(settings: Settings, start_process: StartProcess, tmp_path: Path) -> StartServed:
    """Start a worker of ``served``."""

    def start(*arguments: str, **changes: object) -> Served:
        changes = {"home": tmp_path / "home", "worker_metrics_port": free_port(), **changes}
        environment = worker_environment(settings, changes)
        worker = start_process(worker_command("served", *arguments), environment)
        return Served(worker, f"http://127.0.0.1:{changes['worker_metrics_port']}")

    return start


@pytest.fixture
def engine_python(tmp_path: Path) -> Path:
    """The Python of an environment with a fake vLLM."""
    return fake_engine_python(tmp_path)


def starts(tmp_path: Path) -> list[dict[str, Any]]:
    """What the fake vLLM wrote at each of its starts."""
    path = tmp_path / "started"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.full
def test_jobs_run_on_the_operators_server_and_record_it(
    db: Database, settings: Settings, files: Path, server: FakeVllm, serve: StartServed
) -> None:
    bench = Bench(db, settings, registered(db, files, url=server.url, quantization="awq"))
    worker = serve()
    worker.wait_engine("ok")
    ended = bench.wait_ended(bench.submit(5))
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    said = f"vllm 0.32.0; {MODEL}; context window 512; not said: quantization"
    started = [event for event in jobs.timeline(db, bench.tenant_id, ended[0].id) if event.kind == "started"]
    assert [event.detail["engine"] for event in started] == [said]
    assert worker.process.events("server_described")[0]["server"] == said
    wait_for(lambda: presence.read_serving(db), "the worker announces itself")
    assert presence.read_serving(db)[bench.queue].capacity == 512, "the server holds less than the version"
    assert "libtorch" not in Path(f"/proc/{worker.process.pid}/maps").read_text()
    worker.process.signal(signal.SIGTERM)
    assert worker.process.wait_exit() == 0
    bench.close()


def test_a_server_with_something_else_is_refused_at_the_start(
    db: Database, settings: Settings, files: Path, server: FakeVllm
) -> None:
    server.model = "llama"
    with pytest.raises(ModelLoadError, match=f"llama, .* {MODEL}"):
        load_external_model(registered(db, files, url=server.url), settings, partial(read_file, db), ServerStart())


@pytest.mark.full
def test_a_server_that_is_away_is_waited_for_and_compared_when_it_is_back(
    db: Database,
    settings: Settings,
    files: Path,
    server: FakeVllm,
    serve: StartServed,
    duties_of: Callable[..., Duties],
) -> None:
    bench = Bench(db, settings, registered(db, files, url=server.url))
    duties_of(bench)
    server.finish(server.die())
    worker = serve(max_step_s=60, lease_s=30)
    worker.wait_engine("not answer")
    server.finish(server.listen())
    worker.wait_engine("ok")
    server.step_s = 0.05
    (job_id,) = bench.submit(1, sampling={"max_tokens": 100})
    wait_for(lambda: server.num_tokens > 5, "the job runs")
    server.model = "another"
    server.restart()
    worker.wait_engine("and not tiny")
    bench.wait_state(job_id, JobState.QUEUED)
    wait_for(lambda: presence.read_serving(db) == {}, "the worker does not count")
    # A suspect, as after a worker that died, comes without a message.
    bench.query("UPDATE jobs SET is_suspect = true, crashes = 1 RETURNING id")
    threading.Event().wait(2.5)
    (row,) = bench.query("SELECT state, epoch FROM jobs")
    assert (row.state, row.epoch) == ("queued", 1), "no job is claimed meanwhile"
    num_calls = len(server.calls)
    server.model = MODEL
    server.restart()
    (job,) = bench.wait_ended([job_id])
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1), "the attempt that lost its server is not charged"
    assert len(server.calls) > num_calls
    assert worker.process.exit_code is None
    bench.close()


@pytest.mark.full
def test_a_server_that_hangs_and_not_a_slow_one_ends_the_worker_and_its_jobs_are_charged(
    db: Database, settings: Settings, files: Path, server: FakeVllm, serve: StartServed
) -> None:
    bench = Bench(db, settings, registered(db, files, url=server.url))
    worker = serve(max_step_s=10, lease_s=4)
    worker.wait_engine("ok")
    server.step_s = 0.02
    (job_id,) = bench.submit(1, sampling={"max_tokens": 300})
    wait_for(lambda: server.num_tokens > 5, "the job runs")
    server.freeze()
    threading.Event().wait(5)
    server.go_on()
    num_tokens = server.num_tokens
    wait_for(lambda: server.num_tokens > num_tokens + 20, "it goes on")
    assert not worker.process.events("lease_lost"), "a server that is slow for some leases is not one that hangs"
    server.hang()
    assert worker.process.wait_exit() == EXIT_ENGINE_DEAD
    (row,) = bench.query("SELECT state, attempt, is_suspect FROM jobs")
    assert tuple(row) == ("queued", 1, False)
    assert bench.query("SELECT token_ids FROM job_checkpoints WHERE job_id = :id", id=job_id), "its output is kept"
    bench.close()


@pytest.fixture
def duties_of() -> Iterator[Callable[..., Duties]]:
    started: list[Duties] = []

    def start(bench: Bench) -> Duties:
        started.append(Duties(bench))
        started[-1].start()
        return started[-1]

    yield start
    for duties in started:
        duties.stop()


def test_a_worker_starts_its_server_restarts_it_and_leaves_nothing(
    db: Database,
    settings: Settings,
    files: Path,
    serve: StartServed,
    engine_python: Path,
    duties_of: Callable[..., Duties],
    tmp_path: Path,
) -> None:
    bench = Bench(db, settings, registered(db, files, context_window=2048))
    duties_of(bench)
    worker = serve("--engine", "vllm", "--", "--tensor-parallel-size", "4", engine_python=engine_python, lease_s=30)
    worker.wait_engine("ok")
    argv = starts(tmp_path)[0]["argv"]
    assert argv[:5] == ["-P", "-m", "vllm.entrypoints.cli.main", "serve", str(files)]
    assert argv[-4:] == ["--max-model-len", "2048", "--tensor-parallel-size", "4"]
    assert {"--enable-scale-out", "--scheduling-policy"} < set(argv)
    ids = bench.submit(8, sampling={"max_tokens": 200})
    wait_for(lambda: bench.states(ids)[JobState.RUNNING], "jobs run")
    first = starts(tmp_path)[0]["pids"]
    os.kill(first[0], signal.SIGKILL)
    ended = bench.wait_ended(ids)
    assert {(job.state, job.attempt) for job in ended} == {(JobState.SUCCEEDED, 1)}
    (_, second) = wait_for(lambda: starts(tmp_path)[1:] and starts(tmp_path), "the server is started again")
    wait_for(lambda: not still_alive(first), "nothing is left of the first server")
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait_exit()
    wait_for(lambda: not still_alive(second["pids"]), "the server ended with its worker")
    bench.close()


@pytest.mark.full
def test_a_worker_that_is_asked_to_stop_ends_its_server(
    db: Database, files: Path, serve: StartServed, engine_python: Path, tmp_path: Path
) -> None:
    registered(db, files)
    worker = serve(engine_python=engine_python)
    worker.wait_engine("ok")
    worker.process.signal(signal.SIGTERM)
    assert worker.process.wait_exit() == 0
    assert not still_alive(starts(tmp_path)[0]["pids"])


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (ServerStart(arguments=("--fail",)), "vllm ended: ValueError: no such model"),
        (ServerStart(EngineKind.SGLANG), "engine vllm"),
        (ServerStart(arguments=("--port=1",)), "--port"),
    ],
)
def test_a_server_that_cannot_start_is_said(
    db: Database,
    settings: Settings,
    files: Path,
    engine_python: Path,
    tmp_path: Path,
    start: ServerStart,
    said: str,
) -> None:
    version = registered(db, files)
    settings = settings.model_copy(update={"home": tmp_path, "engine_python": engine_python})
    with pytest.raises(HeadraceError) as refused:
        load_external_model(version, settings, partial(read_file, db), start)
    assert said in refused.value.message
    assert not any(still_alive(one["pids"]) for one in starts(tmp_path))


def test_without_an_installed_server_the_next_step_is_said(
    db: Database, settings: Settings, files: Path, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"home": tmp_path})
    with pytest.raises(SettingsError, match="headrace up --engine vllm"):
        load_external_model(registered(db, files), settings, partial(read_file, db), ServerStart())
