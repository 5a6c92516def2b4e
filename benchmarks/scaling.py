"""``make bench-scaling``: how jobs and streamed tokens a second grow with processes, and what one Postgres takes.

For each number of API processes and workers (the fake model, which computes nothing) one client for each API submits
empty jobs and polls them to their end, then reads long streams. Then 1 to ``--accepting`` processes call our own accept
statement with groups of jobs and nothing else, while Postgres is asked for its counters. Prints each figure when it is
measured with CPU by layer, and as its last line JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import psycopg
from rich.console import Console

from benchmarks.external import stream_load
from benchmarks.queue import headrace, load
from benchmarks.queue.costs import cpu_s
from benchmarks.queue.services import Services, running_services
from headrace.cli.local.stopping import wait_until_ready
from headrace.store.child_process import Command
from headrace.store.db.database import Database
from headrace.store.db.roles import API, WORKER, url_of
from headrace.store.ids import new_id
from headrace.store.jobs.acceptance import NewJob, accept
from headrace.store.ports import free_port
from headrace.store.supervisor import Program

Json = dict[str, Any]
console = Console(stderr=True, log_path=False)
_SHAPES = ((1, 1), (2, 2), (3, 4))
_GROUP = 16
_TENANT = "scaling"
_WARM = 100

_COUNTERS = """
SELECT xact_commit, tup_inserted, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8 AS wal,
    pg_database_size(datname)::float8 AS bytes
FROM pg_stat_database WHERE datname = current_database()
"""


def main() -> None:
    options = _arguments()
    if options.accept_from:
        _accept_for(options.accept_from, options.seconds)
        return
    found: Json = {"processes": [], "accepting": []}
    for apis, workers in _SHAPES if options.only != "accepting" else ():
        with running_services() as services, _stack(services, apis, workers) as (stack, ports, layers):
            figure = {"apis": apis, "workers": workers, **_jobs(stack, ports, layers, options.jobs)}
            figure |= _streams(stack, ports, layers, options.streams, options.tokens)
            found["processes"].append(figure)
            console.log(figure)
    if options.only != "processes":
        with running_services() as services, headrace.running(services, console.log, with_worker=False):
            for number in range(1, options.accepting + 1):
                found["accepting"].append(_accepting(services, number, options.seconds))
                console.log(found["accepting"][-1])
            found["deleting"] = _deleting(services)
            console.log(found["deleting"])
    print(json.dumps(found))


@contextmanager
def _stack(
    services: Services, apis: int, workers: int
) -> Iterator[tuple[headrace.Stack, list[int], Mapping[str, Sequence[int]]]]:
    """Yield a stack with so many processes, the ports of its APIs, and its processes by layer."""
    with headrace.running(services, console.log, with_worker=False) as stack, ExitStack() as cleanup:
        more = [_program(services, stack, "API", number) for number in range(1, apis)]
        more += [_program(services, stack, "worker", number) for number in range(workers)]
        for program, _, _ in more:
            cleanup.callback(program.stop)
            program.start()
        wait_until_ready([program for program, _, _ in more], 180)
        layers = {name: list(pids) for name, pids in (stack.layers | services.layers).items()}
        for program, layer, _ in more:
            assert program.child is not None
            layers.setdefault(layer, []).append(program.child.pid)
        yield stack, [stack.port, *(port for _, layer, port in more if layer == "API")], layers


def _program(services: Services, stack: headrace.Stack, layer: str, number: int) -> tuple[Program, str, int]:
    """Return one more API or worker, its layer, and the port that it answers on."""
    port = free_port("127.0.0.1", 0)
    is_api = layer == "API"
    own = "HEADRACE_API_PORT" if is_api else "HEADRACE_WORKER_METRICS_PORT"
    env = {**stack.env, own: str(port), "DATABASE_URL": url_of(services.database_url, API if is_api else WORKER)}
    argv = ["producer_api"] if is_api else ["workers", "--model", "fake", "--name", f"worker-{number}"]
    name = f"{layer}-{number}"
    command = Command(name, [sys.executable, "-m", *argv], services.folder / f"{name}.log", env=env)
    return Program(command, headrace.answers(port, "/readyz" if is_api else "/metrics"), 20), layer, port


def _jobs(stack: headrace.Stack, ports: Sequence[int], layers: Mapping[str, Sequence[int]], jobs: int) -> Json:
    def plan(port: int, number: int) -> load.Plan:
        return load.Plan(port, stack.dialect, number, concurrency=96 // len(ports), max_s=40)

    def all_at_once(number: int) -> list[load.Measured]:
        with ThreadPoolExecutor(len(ports)) as clients:
            return list(clients.map(lambda port: load.run_load(plan(port, number // len(ports))), ports))

    all_at_once(_WARM * len(ports))
    before = cpu_s(layers)
    measured = all_at_once(jobs)
    after = cpu_s(layers)
    done = sum(one.succeeded for one in measured)
    if done != sum(one.succeeded + one.failed for one in measured) or not done:
        raise SystemExit(f"jobs failed: {[one.errors for one in measured]}")
    used = {name: round(1e6 * (after[name] - before[name]) / done) for name in layers}
    used["client"] = round(1e6 * sum(one.client_cpu_s for one in measured) / done)
    return {"jobs_per_s": round(done / max(one.seconds for one in measured), 1), "cpu_us_per_job": used}


def _streams(
    stack: headrace.Stack, ports: Sequence[int], layers: Mapping[str, Sequence[int]], streams: int, tokens: int
) -> Json:
    body = {
        "model": "fake",
        "prompt": "go on",
        "max_tokens": tokens,
        "stream": True,
        "temperature": 0,
        "ignore_eos": True,
    }
    bodies = tuple(json.dumps(body | {"prompt": f"stream {n}"}) for n in range(streams // len(ports)))
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    before = cpu_s(layers)
    with ThreadPoolExecutor(len(ports)) as clients:
        measured = list(
            clients.map(
                lambda port: stream_load.read_streams(stream_load.Plan(port, "/v1/completions", bodies, headers)), ports
            )
        )
    after = cpu_s(layers)
    if errors := [one.errors for one in measured if one.errors]:
        raise SystemExit(f"streams failed: {errors}")
    told = len(bodies) * len(ports) * tokens
    used = {name: round(1e6 * (after[name] - before[name]) / told, 1) for name in layers}
    used["client"] = round(1e6 * sum(one.client_cpu_s for one in measured) / told, 1)
    return {"tokens_per_s": round(told / max(one.seconds for one in measured)), "cpu_us_per_token": used}


def _accepting(services: Services, number: int, seconds: float) -> Json:
    """Have ``number`` processes accept jobs, and return what Postgres counted meanwhile, for each second."""
    url = services.database_url
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenants (id, name, webhook_secret) VALUES (%s, %s, '-') ON CONFLICT DO NOTHING",
            (_TENANT, _TENANT),
        )
        command = [sys.executable, "-m", "benchmarks.scaling", "--accept-from", url, "--seconds", str(seconds)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        clients = [subprocess.Popen(command, text=True, **pipes) for _ in range(number)]
        for one in clients:
            assert one.stdout is not None
            one.stdout.readline()  # ready
        layers = services.layers
        before, began, used = connection.execute(_COUNTERS).fetchone(), time.monotonic(), cpu_s(layers)
        for one in clients:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        jobs = sum(int(one.communicate()[0]) for one in clients)
        took = time.monotonic() - began
        postgres_cpu_s = cpu_s(layers)["Postgres"] - used["Postgres"]
        time.sleep(1.1)  # backends report their counters once a second
        after = connection.execute(_COUNTERS).fetchone()
    assert before is not None
    assert after is not None
    commits, rows, wal, size = (later - earlier for later, earlier in zip(after, before, strict=True))
    return {
        "processes": number,
        "jobs_per_s": round(jobs / took),
        "commits_per_s": round(commits / took),
        "rows_per_s": round(rows / took),
        "wal_bytes_per_job": round(wal / jobs),
        "stored_bytes_per_job": round(size / jobs),
        "postgres_cores": round(postgres_cpu_s / took, 2),
    }


def _deleting(services: Services) -> Json:
    """Copy all jobs into a table by ranges of ids, and return what deleting a thousand rows and dropping a range cost.

    The deletes are those of the real table, with all rows that belong to the jobs.
    """
    with psycopg.connect(services.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE ranged (LIKE jobs) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE ranged_1 PARTITION OF ranged FOR VALUES FROM ('job_') TO ('job_~')")
        copied = connection.execute("INSERT INTO ranged SELECT * FROM jobs").rowcount
        found: Json = {"dropped_rows": copied}
        for name, statement in (
            ("delete", "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs ORDER BY id LIMIT 1000)"),
            ("drop", "DROP TABLE ranged_1"),
        ):
            before = connection.execute(_COUNTERS).fetchone()
            began = time.monotonic()
            connection.execute(statement)
            found[f"{name}_ms"] = round(1000 * (time.monotonic() - began), 1)
            after = connection.execute(_COUNTERS).fetchone()
            assert before is not None
            assert after is not None
            found[f"{name}_wal_bytes"] = round(after[2] - before[2])
    return found


def _accept_for(url: str, seconds: float) -> None:
    """Print ``ready``, wait for a line, accept groups of jobs for so long, and print how many jobs."""
    db = Database(url, pool_size=1, application_name="bench-scaling")
    numbers = count()
    accept(db, [_job(next(numbers))])
    print("ready", flush=True)
    sys.stdin.readline()
    until, jobs = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        jobs += len(accept(db, [_job(next(numbers)) for _ in range(_GROUP)]))
    db.close()
    print(jobs)


def _job(n: int) -> NewJob:
    return NewJob(
        id=new_id("job"),
        tenant_id=_TENANT,
        task="generate",
        model="fake",
        model_version=1,
        queue="fake@1",
        service_class="standard",
        priority=5,
        payload={"input": {"prompt": f"job {n}: " + "word " * 100}, "sampling": {"max_tokens": 100, "temperature": 0}},
        input_tokens=104,
        cost_tokens=204,
        metadata={},
        webhook=None,
        max_attempts=3,
        deadline_s=86400.0,
        idempotency=None,
        announce=False,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--jobs", type=int, default=3000, help="empty jobs for each shape")
    parser.add_argument("--streams", type=int, default=48, help="streams at once")
    parser.add_argument("--tokens", type=int, default=400, help="tokens of each stream")
    parser.add_argument("--accepting", type=int, default=4, help="most processes that accept")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long they accept")
    parser.add_argument("--only", choices=("processes", "accepting"), help="one of the two parts")
    # Internal: this program starts itself with it.
    parser.add_argument("--accept-from", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
