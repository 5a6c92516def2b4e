"""The three that are compared, how each is started, and where each one's evidence lies."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from benchmarks.compare.checker import Evidence
from benchmarks.compare.client import ClientLog
from benchmarks.compare.kept import Kept
from benchmarks.queue import headrace
from benchmarks.queue.contestants import wait_until_answering
from benchmarks.queue.load import Dialect
from benchmarks.queue.services import Services
from benchmarks.venvs import environment
from headrace.store.child_process import Child, Command
from headrace.store.ports import free_port
from headrace.store.redis.connection import broker_options, connect
from headrace.store.settings import child_environment

APPS = Path(__file__).parent
NUM_WORKERS = 2
_VISIBILITY_S = 10
_TERMINAL = ("succeeded", "failed", "cancelled", "expired")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Running:
    """A contestant that serves: its client's Dialect, the workers that may be killed, and its evidence."""

    port: int
    dialect: Dialect
    workers: Sequence[Kept]
    evidence: Callable[[ClientLog], Evidence]


@dataclass(frozen=True)
class Contestant:
    """One row of the table."""

    name: str
    what: str
    run: Callable[[Services, Say], AbstractContextManager[Running]] = field(repr=False)


def _stock(name: str, late: str) -> Callable[[Services, Say], AbstractContextManager[Running]]:
    @contextmanager
    def run(services: Services, say: Say) -> Iterator[Running]:
        bin_folder, port, log = environment("celery", say), free_port("127.0.0.1", 0), services.folder / f"{name}.runs"
        broker = broker_options(services.redis_url)["broker_url"]
        env = child_environment(
            {
                "BROKER_URL": broker,
                "RESULT_URL": broker.replace("virtual_host=0", "virtual_host=1"),
                "COMPARE_LATE": late,
                "COMPARE_LOG": str(log),
            }
        )
        log.touch()
        worker = [bin_folder / "celery", "-A", "stock:celery", "worker", "--loglevel", "WARNING", "--concurrency", "8"]
        api = [bin_folder / "uvicorn", "stock:app", "--port", str(port), "--no-access-log", "--log-level", "warning"]
        with ExitStack() as cleanup:
            workers = []
            for number in range(NUM_WORKERS):
                argv = [*worker, "--hostname", f"w{number}@compare"]
                workers.append(Kept(_command(services, f"{name}-worker-{number}", argv, env)))
                cleanup.callback(workers[-1].stop)
            child = Child(_command(services, f"{name}-api", api, env))
            cleanup.callback(child.stop)
            wait_until_answering(f"http://127.0.0.1:{port}/openapi.json", [child])
            yield Running(port, _STOCK, workers, lambda _log: _stock_evidence(log, services.redis_url))

    return run


_STOCK = Dialect(
    submit_path="/jobs",
    submit_body='{"steps": {n}}',
    poll_path="/jobs/{id}",
    succeeded=("SUCCESS",),
    failed=("FAILURE", "REVOKED"),
)


def _command(services: Services, name: str, argv: Sequence[str | Path], env: Mapping[str, str]) -> Command:
    return Command(name, argv, services.folder / f"{name}.log", env=env, cwd=APPS)


def _stock_evidence(log: Path, redis_url: str) -> Evidence:
    """Read the tasks' own log, and what the broker still holds. Every end overwrites the result: each is recorded."""
    ends = Counter(line.split()[1] for line in log.read_text().splitlines() if line.startswith("end "))
    kept = set()
    with connect(redis_url) as client:
        messages = [*client.lrange("celery", 0, -1), *client.hvals("unacked")]
    for message in messages:
        body = json.loads(message)
        kept.add((body[0] if isinstance(body, list) else body)["headers"]["id"])
    return Evidence(ends=ends, recorded=ends, kept=kept)


_HEADRACE_BODY = '{"model": "fake", "input": {"prompt": "go"}, "sampling": {"max_tokens": {n}, "ignore_eos": true}}'


@contextmanager
def _headrace(services: Services, say: Say) -> Iterator[Running]:
    # A step for a token, as long as the tasks' sleep.
    changes = {"HEADRACE_FAKE_STEP_MS": "20"}
    with headrace.running(services, say, changes, with_worker=False) as stack, ExitStack() as cleanup:
        workers, logs = [], []
        for number in range(NUM_WORKERS):
            logs.append(services.folder / f"headrace-worker-{number}.log")
            argv = [sys.executable, "-m", "headrace.workers", "--model", "fake"]
            workers.append(Kept(Command(f"worker-{number}", argv, logs[-1], env=stack.env)))
            cleanup.callback(workers[-1].stop)
        yield Running(
            stack.port,
            headrace.dialect(stack.api_key, _HEADRACE_BODY),
            workers,
            lambda log: _headrace_evidence(log, logs, services.database_url),
        )


def _headrace_evidence(log: ClientLog, worker_logs: Sequence[Path], database_url: str) -> Evidence:
    """Read the tables, and the workers' logs for attempts that came to an end and were refused."""
    ids = list(log.jobs)
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        rows = connection.execute(
            "SELECT job_id, count(*) FROM job_events WHERE job_id = ANY(%s) AND kind = ANY(%s) GROUP BY job_id",
            (ids, list(_TERMINAL)),
        ).fetchall()
        kept = connection.execute(
            "SELECT id FROM jobs WHERE id = ANY(%s) AND state IN ('queued', 'running')", (ids,)
        ).fetchall()
    recorded = Counter(dict(rows))
    refused = Counter(
        json.loads(line)["job_id"]
        for path in worker_logs
        for line in path.read_text().splitlines()
        if '"stale_finish_refused"' in line
    )
    return Evidence(ends=recorded + refused, recorded=recorded, kept={row[0] for row in kept})


CONTESTANTS = (
    Contestant("celery", "Celery, defaults", _stock("celery", "")),
    Contestant(
        "celery-late",
        f"Celery, acks_late, reject_on_worker_lost, visibility timeout {_VISIBILITY_S} s",
        _stock("celery-late", str(_VISIBILITY_S)),
    ),
    Contestant("headrace", "Headrace", _headrace),
)
