"""The jobs of a trace: when each arrives and how long it is. From a CSV file, or generated. Pure but for the file."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass

_MOST_JOBS = 1_000_000
_REQUIRED = ("at_s", "prompt_tokens", "output_tokens")
_OPTIONAL = ("max_tokens", "service_class", "tenant", "deadline_s")
_COLUMNS = f"{', '.join(_REQUIRED)}, and perhaps {', '.join(_OPTIONAL)}"
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job that arrives ``at_s`` seconds after the beginning of the trace.

    It generates ``output_tokens`` of its ``max_tokens``. ``deadline_s`` is counted from its arrival.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    class_rank: int = CLASS_RANKS[ServiceClass.STANDARD]
    tenant: str = "tenant"
    deadline_s: float | None = None


class Shape(StrEnum):
    """How generated jobs are spread over time."""

    DIURNAL = "diurnal"
    BURSTY = "bursty"
    BATCH_HEAVY = "batch-heavy"


@dataclass(frozen=True, slots=True)
class Generated:
    """Jobs to generate: their number, the hours that they are spread over, and the means of their tokens."""

    shape: Shape
    num_jobs: int = 2_000
    hours: float = 24.0
    prompt_tokens: int = 200
    output_tokens: int = 150
    seed: int = 1


def read_csv(path: Path) -> list[Arrival]:
    """Return the jobs of a CSV file with a heading, in the order of arrival; the first one arrives at 0.

    Raises InvalidRequest, which names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not set(_REQUIRED) <= set(columns) or not set(columns) <= {*_REQUIRED, *_OPTIONAL}:
                raise InvalidRequest(f"{path}: the first line must name the columns {_COLUMNS}")
            found = [_parsed(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
    if not 0 < len(found) <= _MOST_JOBS:
        raise InvalidRequest(f"{path} has {len(found):,} jobs: give 1 to {_MOST_JOBS:,}")
    return in_order(found)


def in_order(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Return the jobs in the order of arrival, with the first one at 0."""
    found = sorted(arrivals, key=lambda one: one.at_s)
    return [_moved(one, -found[0].at_s) for one in found]


def generate(wanted: Generated) -> list[Arrival]:
    """Return jobs of a shape, the same ones for the same seed.

    ``diurnal``: a day's wave, from nothing at night to twice the mean at noon. ``bursty``: ten bursts of a minute and
    silence between them. ``batch-heavy``: a fifth of the jobs as the wave; the others are of the batch class and arrive
    together at the beginning, with the end of the trace as their deadline.
    """
    random = Random(wanted.seed)  # noqa: S311 - a simulation, no secret
    span_s = wanted.hours * 3600
    found = [_job(random, wanted, at_s, rank, due) for at_s, rank, due in _times(random, wanted, span_s)]
    return in_order(found)


def _times(random: Random, wanted: Generated, span_s: float) -> Iterator[tuple[float, int, float | None]]:
    """Yield the time, the class and the deadline of each job."""
    standard, batch = CLASS_RANKS[ServiceClass.STANDARD], CLASS_RANKS[ServiceClass.BATCH]
    bursts = [random.uniform(0, max(0.0, span_s - 60)) for _ in range(10)]
    num_waves = max(1, round(span_s / _DAY_S))
    for number in range(wanted.num_jobs):
        if wanted.shape is Shape.BURSTY:
            yield random.choice(bursts) + random.uniform(0, min(60.0, span_s)), standard, None
        elif wanted.shape is Shape.BATCH_HEAVY and number % 5:
            yield random.uniform(0, min(60.0, span_s)), batch, span_s
        else:
            yield _on_wave(random, num_waves) * span_s, standard, None


def _on_wave(random: Random, num_waves: int) -> float:
    """Return a part of the trace, more often where 1 - cos is high."""
    while True:
        part = random.random()
        if 2 * random.random() < 1 - math.cos(2 * math.pi * num_waves * part):
            return part


def _job(random: Random, wanted: Generated, at_s: float, rank: int, deadline_s: float | None) -> Arrival:
    # Lengths are spread as those of real traffic: a few are long. Mean as wanted.
    output = _length(random, wanted.output_tokens)
    return Arrival(at_s, _length(random, wanted.prompt_tokens), output, 2 * output, rank, "tenant", deadline_s)


def _length(random: Random, mean: int) -> int:
    return max(1, min(8 * mean, round(random.lognormvariate(math.log(mean) - 0.18, 0.6))))


def _moved(one: Arrival, by_s: float) -> Arrival:
    return Arrival(
        one.at_s + by_s,
        one.prompt_tokens,
        one.output_tokens,
        one.max_tokens,
        one.class_rank,
        one.tenant,
        one.deadline_s,
    )


def _parsed(path: Path, line: int, row: Mapping[str | None, str | None]) -> Arrival:
    try:
        given = {name: value.strip() for name, value in row.items() if name and value is not None and value.strip()}
        if None in row or not set(_REQUIRED) <= given.keys():
            raise ValueError("each line has as many values as the first one")
        output = _number(given, "output_tokens", 1)
        return Arrival(
            at_s=_seconds(given["at_s"], "at_s"),
            prompt_tokens=_number(given, "prompt_tokens", 1),
            output_tokens=output,
            max_tokens=_number(given, "max_tokens", output) if "max_tokens" in given else output,
            class_rank=CLASS_RANKS[ServiceClass(given.get("service_class", ServiceClass.STANDARD))],
            tenant=given.get("tenant", "tenant"),
            deadline_s=_seconds(given["deadline_s"], "deadline_s") if "deadline_s" in given else None,
        )
    except ValueError as error:
        raise InvalidRequest(f"{path}, line {line}: {error}") from None


def _number(given: Mapping[str, str], name: str, least: int) -> int:
    text = given[name]
    if not (text.isascii() and text.isdecimal() and len(text) < 9) or int(text) < least:
        raise ValueError(f"{name} is a whole number of at least {least}, not {text[:40]!r}")
    return int(text)


def _seconds(text: str, name: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise ValueError(f"{name} is a number of seconds, 0 or more, not {text[:40]!r}")
    return found
