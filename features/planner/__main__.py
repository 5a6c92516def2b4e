"""``python -m headrace.features.planner TRACE``: forecasts waits and cost of capacity (docs/planning.md).

Exit codes: 0 with a forecast, 1 for a wrong trace or rates, 2 for wrong usage or settings.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from headrace.features.planner.arrivals import Arrival, Generated, Shape, generate, read_csv
from headrace.features.planner.drawing import svg
from headrace.features.planner.fitting import arrivals_of, fitted
from headrace.features.planner.forecast import MEASURED_ERROR, Forecast, advice, forecast
from headrace.features.planner.job_history import read_ended
from headrace.features.planner.rates import Rates, read_rates
from headrace.features.planner.simulation import Capacity, QueueRules, Run, simulate, too_long
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, InvalidRequest, SettingsError
from headrace.store.hosts.hosted_versions import read_hosted_versions
from headrace.store.registry.models import queue_name, resolve
from headrace.store.scale_bounds import parse_range
from headrace.store.scheduling.autoscale import ScaleLimits
from headrace.store.scheduling.scale_decisions import read_histories, read_slots
from headrace.store.settings import Settings, load_settings, require_services

Fitting = Callable[[], list[Rates]]

HISTORY = "history:"
_UNKNOWN_START_S = 10.0
_MOST_FIXED = 4
_USUAL = Generated(Shape.DIURNAL)


def main(argv: Sequence[str] | None = None) -> int:
    """Forecast and print; return the exit code. Errors are one line on stderr."""
    options = _arguments(argv)
    try:
        settings = load_settings()
        arrivals, rates = _inputs(settings, options)
        runs = _runs(settings, options, arrivals, rates)
    except SettingsError as error:
        return _refuse(error.message, 2)
    except HeadraceError as error:
        return _refuse(error.message, 1)
    forecasts = [forecast(run, options.worker_hour) for run in runs]
    wait_s = options.wait_s or settings.autoscale_wait_s
    told = advice(forecasts, wait_s)
    if options.picture is not None:
        try:
            options.picture.write_text(svg(forecasts, runs, advice=told, error=MEASURED_ERROR), encoding="utf-8")
        except OSError as error:
            return _refuse(f"{options.picture} cannot be written: {error.strerror}", 1)
    if options.json:
        found = {
            "advice": told,
            "error": MEASURED_ERROR,
            "rates": [one.model_dump() for one in rates],
            "forecasts": [asdict(one) for one in forecasts],
        }
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(
            "\n".join([*_table(forecasts, wait_s), "", told, f"error against live runs: {MEASURED_ERROR}", ""])
        )
    return 0


def _inputs(settings: Settings, options: argparse.Namespace) -> tuple[list[Arrival], list[Rates]]:
    """Return the trace and the rates of each version. Raises HeadraceError."""
    files = [one for one in (options.rates, options.against) if one is not None]
    rates = [read_rates(path) for path in files]
    trace = str(options.trace)
    if trace.startswith(HISTORY):
        arrivals, own = _history(settings, trace.removeprefix(HISTORY), options.within * 3600)
        return arrivals, rates if options.rates is not None else [*own(), *rates]
    if options.rates is None:
        raise InvalidRequest(f"give --rates, a file with the speed of a worker; only {HISTORY}MODEL needs none")
    if trace in set(Shape):
        wanted = Generated(
            Shape(trace), options.jobs, options.hours, options.prompt_tokens, options.output_tokens, options.seed
        )
        return generate(wanted), rates
    return read_csv(Path(trace)), rates


def _history(settings: Settings, name: str, within_s: float) -> tuple[list[Arrival], Fitting]:
    """Return the jobs of a version that have ended, and what fits rates to them. Raises HeadraceError."""
    settings = require_services(settings)
    db = Database(settings.database_url, pool_size=1, application_name="headrace plan")
    try:
        version = resolve(db, name, with_retired=True)
        queue = queue_name(version.model, version.version)
        jobs = read_ended(db, queue, within_s)
        decided = read_histories(db, [queue]).get(queue)
        starts = [one.start_s for one in read_hosted_versions(db) if one.queue == queue]
        slots = read_slots(db).get(queue)
    finally:
        db.close()
    seen_s = None if decided is None else decided.cold_start_s
    cold_start_s = next((one for one in (seen_s, *starts) if one is not None), _UNKNOWN_START_S)
    return arrivals_of(jobs), lambda: [fitted(jobs, queue, cold_start_s=cold_start_s, slots=slots)]


def _runs(
    settings: Settings, options: argparse.Namespace, arrivals: Sequence[Arrival], rates: Sequence[Rates]
) -> list[Run]:
    """Return a simulation of each capacity with each version. Raises InvalidRequest for a job that is too long."""
    for one in rates:
        if (job := too_long(arrivals, one)) is not None:
            raise InvalidRequest(
                f"a job of {job.prompt_tokens + job.max_tokens:,} tokens does not fit kv_tokens {one.kv_tokens:,} of "
                f"{one.name}: correct the trace, or give the pool of your worker"
            )
    capacities = _capacities(settings, options)
    rules = QueueRules(settings.ready_window, settings.ageing_s, settings.batch_share)
    found = []
    for one in rates:
        for capacity in capacities:
            sys.stderr.write(f"· {one.name}: {capacity.name}\n")
            found.append(simulate(arrivals, one, capacity, rules))
    return found


def _capacities(settings: Settings, options: argparse.Namespace) -> list[Capacity]:
    """Return the fixed numbers of workers to try, and the bounds of autoscaling: those given, and one warm worker."""
    least, most = options.workers
    fixed = options.fixed or sorted({max(1, round(most * part / _MOST_FIXED)) for part in range(1, _MOST_FIXED + 1)})
    bounds = dict.fromkeys([(least, most), (max(1, least), most)])
    return [
        *(Capacity(f"{number} fixed", fixed=number) for number in fixed),
        *(Capacity(f"{low}..{high} scaled", limits=_limits(settings, options, low, high)) for low, high in bounds),
    ]


def _limits(settings: Settings, options: argparse.Namespace, least: int, most: int) -> ScaleLimits:
    return ScaleLimits(
        least,
        most,
        wait_s=options.wait_s or settings.autoscale_wait_s,
        cool_down_s=settings.autoscale_cool_down_s,
        zero_after_s=settings.autoscale_zero_after_s,
    )


def _table(forecasts: Sequence[Forecast], wait_s: float) -> list[str]:
    has_cost = any(one.cost is not None for one in forecasts)
    heads = ["version", "workers", "wait p50", "p95", "first token p50", "p95", "late", "kept", "worker-hours", "busy"]
    rows = [[*heads, *(["cost"] if has_cost else [])]]
    for one in forecasts:
        times = (one.wait_p50_s, one.wait_p95_s, one.ttft_p50_s, one.ttft_p95_s)
        figures = [
            *map(_seconds, times),
            f"{one.late:,}",
            "yes" if one.keeps(wait_s) else "no",
            f"{one.worker_hours:.3f}",
            f"{one.utilisation:.0%}",
        ]
        rows.append([one.rates, one.capacity, *figures, *([f"{one.cost:.2f}"] if one.cost is not None else [])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in rows)
    ]


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f} s"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="headrace plan", description="Forecast waits and cost (docs/planning.md).")
    shapes = ", ".join(Shape)
    parser.add_argument("trace", help=f"a CSV file, {HISTORY}MODEL, or one of {shapes}")
    parser.add_argument("--rates", type=Path, help="JSON: the speed of one worker")
    parser.add_argument("--against", type=Path, help="the rates of another version, to compare")
    parser.add_argument("--workers", type=_range, default=(0, 4), help="least and most workers, such as 0..4")
    parser.add_argument("--fixed", type=_numbers, default=(), help="fixed numbers of workers to try, such as 1,2")
    parser.add_argument("--wait-s", type=_positive, help="start 95 of 100 jobs in it; else HEADRACE_AUTOSCALE_WAIT_S")
    parser.add_argument("--worker-hour", type=_positive, help="price of a worker for an hour")
    parser.add_argument("--within", type=_positive, default=24.0, help="hours of the history")
    parser.add_argument("--jobs", type=_count, default=_USUAL.num_jobs, help="jobs to generate")
    parser.add_argument("--hours", type=_positive, default=_USUAL.hours, help="time that they are spread over")
    parser.add_argument("--prompt-tokens", type=_count, default=_USUAL.prompt_tokens, help="mean of generated jobs")
    parser.add_argument("--output-tokens", type=_count, default=_USUAL.output_tokens, help="mean of generated jobs")
    parser.add_argument("--seed", type=int, default=_USUAL.seed)
    parser.add_argument("--picture", type=Path, help="write an SVG file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def _range(given: str) -> tuple[int, int]:
    try:
        return parse_range(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _numbers(given: str) -> tuple[int, ...]:
    return tuple(_count(one, most=1_000) for one in given.split(","))


def _count(given: str, most: int = 1_000_000) -> int:
    if not (given.isascii() and given.strip().isdecimal()) or not 1 <= int(given) <= most:
        raise argparse.ArgumentTypeError(f"{given!r}: write a whole number from 1 to {most:,}")
    return int(given)


def _positive(given: str) -> float:
    try:
        found = float(given)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{given!r}: write a number greater than 0")
    return found


def _refuse(message: str, code: int) -> int:
    sys.stderr.write(f"headrace plan: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
