"""The goals that the engine is held to, each measured by one command and judged in one sentence.

Ratios come from rounds in which both sides took turns; a side that is absent is a goal that is not reached, and is
named.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from benchmarks.engine.contestants import CONTESTANTS, REFERENCE, Contestant
from benchmarks.engine.measured import gaps, measured, share
from benchmarks.engine.report import rows
from benchmarks.engine.turns import SLOTS, Field
from benchmarks.engine.workloads import SHAPES, Shape, arriving

_FILLS_THE_POOL = Shape(requests=96, prompt=(512, 512), output=(1, 1))

_BY_NAME = {each.name: each for each in CONTESTANTS}


@dataclass(frozen=True)
class Verdict:
    """The measurement in a sentence, and whether it reaches the goal."""

    is_reached: bool
    sentence: str
    figures: Mapping[str, object]


Goal = Callable[[Field, int], list[Verdict]]


def _times(ours: str, *theirs: str, least: float, tokens: int = 0) -> Goal:
    """Return the goal that ``ours`` makes at least so many times the tokens a second of each of the others.

    ``tokens``: the number of next tokens to compare with float32, because 8 bits must be accurate too; 0: none.
    """

    def judge(field: Field, rounds: int) -> list[Verdict]:
        names = (ours, *theirs)
        wanted = [_BY_NAME[name] for name in names]
        with field.running(wanted):
            field.rounds(wanted, "mixed", SHAPES["mixed"], SLOTS, rounds)
        found = {row["contestant"]: row for row in rows(field.turns, ours)}
        verdicts = [_compared(found, ours, name, least) for name in theirs]
        if tokens:
            verdicts.append(_faithful(field.agreements(wanted, REFERENCE, tokens), ours))
        return verdicts

    return judge


def _compared(found: Mapping[str, dict[str, Any]], ours: str, theirs: str, least: float) -> Verdict:
    if ours not in found or theirs not in found or not found[theirs]["times"]:
        return Verdict(False, f"{ours} against {theirs}: one of them is absent", {})
    row = found[theirs]
    sentence = (
        f"{ours} {found[ours]['tokens_per_s']:.0f} tokens/s, {theirs} {row['tokens_per_s']:.0f}: {row['times']:.2f} × "
        f"(rounds {', '.join(f'{each:.2f}' for each in row['times_all'])}), the goal is {least:g} ×"
    )
    return Verdict(row["times"] >= least, sentence, {"ours": found[ours], "theirs": row})


def _faithful(shares: Mapping[str, float], ours: str) -> Verdict:
    told = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    sentence = f"next tokens as in float32: {told}; the goal is {_LEAST_AGREEMENT}"
    return Verdict(shares.get(ours, 0.0) >= _LEAST_AGREEMENT, sentence, shares)


def _path(field: Field, rounds: int) -> list[Verdict]:
    """The whole path against the engine in process: all at once, and alone."""
    ours, path = _BY_NAME["headrace-bf16"], _BY_NAME["path-bf16"]
    low = replace(SHAPES["mixed"], requests=_LOW_LOAD_REQUESTS, output=(8, 16))
    with field.running([ours, path]):
        field.rounds([path, ours], "mixed", SHAPES["mixed"], SLOTS, rounds)
        field.rising_load([path, ours], low, SLOTS, [_LOW_LOAD_PER_S], _LOW_LOAD_REQUESTS / _LOW_LOAD_PER_S)
    found = rows(field.turns, path.name)
    full = {row["contestant"]: row for row in found if row["load"] is None}
    alone = {row["contestant"]: row for row in found if row["load"] is not None}
    verdicts = [_compared(full, path.name, ours.name, 0.95)]
    if len(alone) == 2:
        more_ms = 1000 * (alone[path.name]["ttft_mean_s"] - alone[ours.name]["ttft_mean_s"])
        sentence = f"mean TTFT at {_LOW_LOAD_PER_S:g} requests/s is {more_ms:.1f} ms longer, the goal is 15 ms"
        verdicts.append(Verdict(more_ms <= _MOST_PATH_MS, sentence, alone))
    return verdicts


def _prefix(field: Field, rounds: int) -> list[Verdict]:
    """Alone, one after the other: a prompt with 400 tokens that was not sent before, and one with the same 400."""
    ours = _BY_NAME["headrace-bf16"]
    found: dict[str, list[float]] = {"miss": [], "hit": []}
    with field.running([ours]):
        field.ask(ours, SLOTS, field.fresh(Shape(requests=4)))
        for _ in range(_PAIRS * rounds):
            pair = field.fresh(Shape(requests=2, prompt=(16, 16), output=(8, 8), shared=400))
            for kind, request in zip(found, pair, strict=True):
                answer = field.ask(ours, SLOTS, [request])
                if answer is None:
                    return [_absent(field, ours)]
                found[kind].append(measured([request], answer).ttft_mean_s)
    hit_s, miss_s = median(found["hit"]), median(found["miss"])
    sentence = f"TTFT of a hit of 400 tokens {1000 * hit_s:.1f} ms, of a miss {1000 * miss_s:.1f} ms: "
    sentence += f"{hit_s / miss_s:.3f} ×, the goal is 0.2 ×"
    return [Verdict(hit_s / miss_s <= _MOST_HIT_TIMES, sentence, found)]


def _gap(field: Field, rounds: int) -> list[Verdict]:
    """Eight streams decode while prompts of 400 tokens arrive: how long the streams wait for their next token."""
    ours = _BY_NAME["headrace-bf16"]
    streams = [replace(each, id=f"s{each.id}") for each in field.fresh(Shape(8, (32, 32), (256, 256)))]
    prompts = arriving(field.fresh(Shape(5 * rounds, (400, 400), (1, 1))), 4.0, seed=1)
    with field.running([ours]):
        field.ask(ours, SLOTS, field.fresh(Shape(requests=4)))
        answer = field.ask(ours, SLOTS, [*streams, *prompts])
    if answer is None:
        return [_absent(field, ours)]
    between = gaps([each for each in answer.outcomes if each.id.startswith("s")])
    p50_ms, p99_ms = 1000 * median(between), 1000 * share(between, 0.99)
    sentence = f"inter-token gap p99 {p99_ms:.1f} ms, median {p50_ms:.1f} ms: {p99_ms / p50_ms:.2f} ×, the goal is 2 ×"
    return [Verdict(p99_ms <= _MOST_GAP_TIMES * p50_ms, sentence, {"p50_ms": p50_ms, "p99_ms": p99_ms})]


def _start(field: Field, rounds: int) -> list[Verdict]:
    """A process of its own each time: weights from disk, then one token; and how much memory a full run takes."""
    ours = _BY_NAME["headrace-bf16"]
    seconds: list[float] = []
    for _ in range(rounds):
        with field.running([ours]):
            answer = field.ask(ours, SLOTS, field.fresh(Shape(1, (16, 16), (1, 1))))
            if answer is None:
                return [_absent(field, ours)]
            seconds.append(float(str(field.ready[ours.name]["load_s"])) + answer.seconds)
            # Memory counts once every page of the pool was written to: before that, Linux has given none for it.
            field.ask(ours, SLOTS, field.fresh(_FILLS_THE_POOL))
            full = field.ask(ours, SLOTS, field.fresh(SHAPES["mixed"]))
    ready = field.ready[ours.name]
    allowed_mb = float(str(ready["weights_mb"])) + float(str(ready["pool_mb"])) + 400
    peak_mb = full.peak_mb if full else 0.0
    return [
        Verdict(
            median(seconds) <= _MOST_START_S,
            f"load and first token {median(seconds):.2f} s after the imports, the goal is 3 s",
            {"seconds": seconds, **ready},
        ),
        Verdict(
            0 < peak_mb <= allowed_mb,
            f"peak {peak_mb:.0f} MB; weights {ready['weights_mb']}, KV pool {ready['pool_mb']} and 400 MB are "
            f"{allowed_mb:.0f} MB",
            {"peak_mb": peak_mb, "allowed_mb": allowed_mb},
        ),
    ]


def _absent(field: Field, contestant: Contestant) -> Verdict:
    return Verdict(False, f"{contestant.name} is absent: {field.refusals.get(contestant.name)}", {})


_LOW_LOAD_PER_S = 1.0
_LOW_LOAD_REQUESTS = 20
_PAIRS = 3
_LEAST_AGREEMENT = 0.94
_MOST_PATH_MS = 15.0
_MOST_HIT_TIMES = 0.2
_MOST_GAP_TIMES = 2.0
_MOST_START_S = 3.0

GOALS: dict[str, Goal] = {
    "bf16": _times("headrace-bf16", "vllm-bf16", "openvino-bf16", least=1.15),
    "int8": _times("headrace-int8", "openvino-int8", "llama-server-q8", least=1.15, tokens=512),
    "torch": _times("torch-bf16", "transformers-bf16", least=3.0),
    "transformers": _times("headrace-bf16", "transformers-bf16", least=5.0),
    "path": _path,
    "prefix": _prefix,
    "gap": _gap,
    "start": _start,
}
