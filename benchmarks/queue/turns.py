"""One contestant's turn: start, warm up, measure time and cost, stop."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.queue import headrace
from benchmarks.queue.contestants import Contestant, DoesNotRun, Running
from benchmarks.queue.costs import PostgresCounters, cpu_s
from benchmarks.queue.load import Measured, Plan, run_load
from benchmarks.queue.services import Services
from benchmarks.venvs import CannotInstall
from headrace.store.errors import HeadraceError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    jobs: int
    concurrency: int
    rounds: int
    poll_ms: float
    max_s: float
    warm_up: int
    steady_s: float
    steady_rate: float
    statements: bool


@dataclass(frozen=True)
class Turn:
    """What one turn gave. ``cpu_us_per_job`` by layer, the client's with them; ``per_job`` is Postgres's counters."""

    contestant: str
    measured: Measured
    cpu_us_per_job: dict[str, float]
    per_job: dict[str, float]


def play(contestant: Contestant, services: Services, options: Options, say: Say) -> Turn | str:
    """Return the turn, or why the contestant could not play."""
    services.empty_redis(append_only=contestant.venv is None)
    try:
        with contestant.run(services, say) as running:
            plan = Plan(
                port=running.port,
                dialect=running.dialect,
                jobs=options.jobs,
                concurrency=options.concurrency,
                poll_ms=options.poll_ms,
                max_s=options.max_s,
            )
            warm = run_load(dataclasses.replace(plan, jobs=options.warm_up))
            if not warm.succeeded:
                return f"no job of the warm-up succeeded: {warm.errors or f'{warm.failed} failed'}"
            return measure(contestant, services, running, plan, options, say)
    except (DoesNotRun, CannotInstall, HeadraceError) as error:
        return str(error)


def measure(
    contestant: Contestant, services: Services, running: Running, plan: Plan, options: Options, say: Say
) -> Turn:
    """Run the plan between two looks at the costs."""
    layers = {**running.layers, **services.layers}
    with PostgresCounters(services.database_url) as postgres:
        before: list[Mapping[str, float]] = []

        def look() -> None:
            postgres.forget()
            before.extend([cpu_s(layers), postgres.look()])

        measured = run_load(plan, look)
        counted, used = postgres.look(), cpu_s(layers)
        if options.statements and contestant.uses_postgres:
            for query, calls, ms in postgres.heaviest():
                say(f"  {calls:>6} × {1000 * ms / max(1, calls):7.0f} µs  {query}")
    cpu = {layer: used[layer] - before[0][layer] for layer in layers} | {"client": measured.client_cpu_s}
    jobs = max(1, measured.succeeded + measured.failed)
    counters = {name: (counted[name] - before[1][name]) / jobs for name in counted} if contestant.uses_postgres else {}
    return Turn(contestant.name, measured, {layer: 1e6 * seconds / jobs for layer, seconds in cpu.items()}, counters)


def open_loop(services: Services, options: Options, say: Say) -> dict[str, float]:
    """Offer Headrace jobs at a steady mean rate, whatever it does, and return how long a submit took."""
    say(f"open loop: {options.steady_rate:.0f} jobs/s for {options.steady_s:.0f} s")
    services.empty_redis(append_only=True)
    with headrace.running(services, say) as stack:
        plan = Plan(
            port=stack.port,
            dialect=stack.dialect,
            jobs=round(options.steady_rate * options.steady_s),
            poll_ms=options.poll_ms,
            rate=options.steady_rate,
            max_s=2 * options.steady_s,
        )
        run_load(dataclasses.replace(plan, jobs=options.warm_up, rate=0.0))
        found = run_load(plan)
    return {
        "rate": options.steady_rate,
        "jobs": plan.jobs,
        "succeeded": found.succeeded,
        "submit_p50_ms": found.submit_p50_ms,
        "submit_p99_ms": found.submit_p99_ms,
        "total_p50_ms": found.total_p50_ms,
        "total_p99_ms": found.total_p99_ms,
        "client_cpu_share": round(found.client_cpu_s / found.seconds, 3) if found.seconds else 0.0,
    }
