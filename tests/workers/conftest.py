"""A registered fake model, jobs for it, a worker process that runs them, and the duties of a dispatcher."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text

from headrace.features.response_cache import sharers
from headrace.models.fakes.fake import FakeRunner
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError
from headrace.store.ids import new_id
from headrace.store.jobs import jobs, sweeps
from headrace.store.jobs.jobs import Job, NewJob
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.redis.celery_queue import Hint, HintPublisher, celery_app
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion, queue_name, shadow_name
from headrace.store.scheduling import dispatch_queries
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from headrace.workers.tasks.generate import GenerateModel
from headrace.workers.worker_runtime import WorkerRuntime
from tests.processes import WAIT_S, Process, StartProcess, python, wait_for
from tests.roles import as_worker


class Bench:
    """The submitting side: accepts jobs, publishes hints, reads the outcomes."""

    def __init__(self, db: Database, settings: Settings, version: ModelVersion) -> None:
        self.db = db
        self.settings = settings
        self.version = version
        self.queue = queue_name(version.model, version.version)
        self.tenant_id = api_keys.create_tenant(db, new_id("tenant"))
        self.app = celery_app(settings)
        self.publisher = HintPublisher(self.app)

    def new_job(self, **changes: Any) -> NewJob:
        """A job as the API would make it; ``prompt`` and ``sampling`` go into its payload."""
        sampling = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True} | changes.pop("sampling", {})
        job_id = new_id("job")
        prompt = changes.pop("prompt", f"tell me of {job_id}")
        payload = {"input": {"prompt": prompt}, "sampling": sampling}
        if self.version.task == "embed":
            payload = {"input": {"texts": [prompt]}}
        values: dict[str, Any] = {
            "id": job_id,
            "tenant_id": self.tenant_id,
            "task": self.version.task,
            "model": self.version.model,
            "model_version": self.version.version,
            "queue": self.queue,
            "service_class": ServiceClass.STANDARD,
            "priority": 5,
            "payload": payload,
            "input_tokens": 1,
            "cost_tokens": 10,
            "metadata": {},
            "webhook": None,
            "max_attempts": 3,
            "deadline_s": 3600.0,
            "idempotency": None,
            "announce": True,
        }
        return NewJob(**(values | changes))

    def submit(self, count: int = 1, **changes: Any) -> list[str]:
        """Accept jobs and publish their hints."""
        new = [self.new_job(**changes) for _ in range(count)]
        for outcome in jobs.accept(self.db, new):
            assert isinstance(outcome, jobs.Accepted)
        ids = [job.id for job in new]
        self.publish_hints(ids)
        return ids

    def publish_hints(self, job_ids: Sequence[str]) -> None:
        """Publish hints."""
        shadow = shadow_name(self.version.task, self.version.model, self.version.version)
        self.publisher.publish([Hint(job_id, self.queue, shadow) for job_id in job_ids])

    def job(self, job_id: str) -> Job:
        """Read a job."""
        return jobs.get(self.db, self.tenant_id, job_id)

    def states(self, job_ids: Sequence[str]) -> Counter[JobState]:
        """How many jobs are in each state."""
        return Counter(job.state for job in jobs.get_many(self.db, self.tenant_id, job_ids))

    def wait_ended(self, job_ids: Sequence[str], timeout_s: float = WAIT_S) -> list[Job]:
        """Wait until every job is in a terminal state and return them."""
        wait_for(
            lambda: all(state.is_terminal for state in self.states(job_ids)),
            f"all of {len(job_ids)} jobs ended",
            timeout_s,
        )
        return jobs.get_many(self.db, self.tenant_id, job_ids)

    def wait_state(self, job_id: str, state: JobState, timeout_s: float = WAIT_S) -> None:
        """Wait until a job is in a state."""
        wait_for(lambda: self.job(job_id).state is state, f"{job_id} is {state}", timeout_s)

    def query(self, sql: str, **values: Any) -> list[Any]:
        """Look into the tables."""
        with self.db.begin() as connection:
            return list(connection.execute(text(sql), values))

    def end_leases(self) -> None:
        """Let the leases of all running jobs end now, as those of a dead or stopped worker do some time later."""
        self.query("UPDATE jobs SET lease_expires_at = now() WHERE state = 'running' RETURNING id")

    def close(self) -> None:
        """Drop the connection to Redis."""
        self.publisher.close()


class Duties(threading.Thread):
    """Does the duties of a dispatcher for jobs: expired leases, deadlines, waiting and stale announcements."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(name="dispatcher-duties", daemon=True)
        self._bench = bench
        self._stopped = threading.Event()
        self.requeued = 0

    def run(self) -> None:
        """Turn until stopped, whatever is away."""
        while not self._stopped.wait(0.1):
            with suppress(HeadraceError):
                self._turn()

    def _turn(self) -> None:
        bench = self._bench
        self.requeued += sweeps.sweep_leases(bench.db).requeued
        sharers.sweep(bench.db, 256)
        bench.publish_hints(dispatch_queries.take_waiting(bench.db, bench.queue, 256))
        bench.publish_hints(dispatch_queries.take_stale(bench.db, bench.queue, bench.settings.reannounce_s, 256))

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join(WAIT_S)


def worker_command(model: str, *arguments: str) -> list[str]:
    """The command of a worker process."""
    return python("-W", "error::DeprecationWarning", "-m", "headrace.workers", "--model", model, *arguments)


def worker_environment(settings: Settings, changes: Mapping[str, object]) -> dict[str, str]:
    """The whole environment of a worker process."""
    return {"PATH": os.defpath, "PYTHONUNBUFFERED": "1", **_environment({**_changed(as_worker(settings)), **changes})}


def _changed(settings: Settings) -> dict[str, object]:
    # Not Settings(): that reads the environment of the tests, which the process does not get.
    fields = Settings.model_fields
    return {name: value for name, value in settings if value != fields[name].get_default(call_default_factory=True)}


def _environment(values: dict[str, object]) -> dict[str, str]:
    plain = {"database_url", "redis_url"}
    return {name.upper() if name in plain else f"HEADRACE_{name.upper()}": str(value) for name, value in values.items()}


@pytest.fixture
def version(db: Database, request: pytest.FixtureRequest) -> ModelVersion:
    """The fake model, registered as ``fake@1``; parametrised with ``fake-encoder``, that one under the same name."""
    return models.register_version(
        db,
        model="fake",
        runner=getattr(request, "param", "fake"),
        source="fake",
        digest="0" * 64,
        dtype="none",
        context_window=8192,
        files={},
        actor="tests",
    )


@pytest.fixture
def bench(db: Database, settings: Settings, version: ModelVersion) -> Iterator[Bench]:
    """The submitting side for the fake model."""
    bench = Bench(db, settings, version)
    yield bench
    bench.close()


@pytest.fixture
def duties(bench: Bench) -> Iterator[Duties]:
    """A dispatcher's work on jobs, in the background."""
    duties = Duties(bench)
    duties.start()
    yield duties
    duties.stop()


StartWorker = Callable[..., Process]


@pytest.fixture
def start_worker(settings: Settings, version: ModelVersion, start_process: StartProcess) -> StartWorker:
    """Start worker processes for the fake model; ``start_worker("--name", "w1", drain_s=1)``, ready when returned.

    Their leases outlast a pause of a busy machine; ``bench.end_leases`` ends those of a worker that was killed.
    """

    def start(*arguments: str, ready: bool = True, model: str = "fake", **changes: object) -> Process:
        environment = worker_environment(settings, {"lease_s": 30, **changes})
        worker = start_process(worker_command(model, *arguments), environment)
        if ready:
            worker.wait_event("worker_ready")
        return worker

    return start


@dataclass
class Running:
    """A runtime without Celery: ``run`` gives it a job id as the task would."""

    runtime: WorkerRuntime
    threads: ThreadPoolExecutor
    exits: list[int]

    def run(self, *job_ids: str) -> list[Future[None]]:
        return [self.threads.submit(self.runtime.job_runner.run, job_id) for job_id in job_ids]

    def run_to_end(self, *job_ids: str) -> None:
        for future in self.run(*job_ids):
            future.result(WAIT_S)


StartHost = Callable[..., Running]


@pytest.fixture
def start_host(settings: Settings, version: ModelVersion) -> Iterator[StartHost]:
    """Start hosts around a FakeRunner: ``start_host(fault=…, step_s=…, settings={…})``."""
    started: list[Running] = []

    def start(
        settings_changes: dict[str, Any] | None = None, *, version: ModelVersion = version, **runner: Any
    ) -> Running:
        exits: list[int] = []
        runtime = WorkerRuntime(
            settings.model_copy(update={"lease_s": 60, **(settings_changes or {})}),
            GenerateModel(version, FakeRunner(**runner), ByteTokenizer()),
            owner=f"runtime-{len(started)}",
            max_jobs=64,
            exit_now=exits.append,
        )
        runtime.start()
        started.append(Running(runtime, ThreadPoolExecutor(32), exits))
        return started[-1]

    yield start
    for running in started:
        running.runtime.stop()
        running.threads.shutdown()
