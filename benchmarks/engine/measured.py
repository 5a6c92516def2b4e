"""From what a contestant answered to figures. Pure: tokens and times in, rates, delays and gaps out."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from benchmarks.engine.peers.wire import Answer, Outcome, Request


class WrongAnswer(Exception):
    """A contestant did not compute its requests."""


@dataclass(frozen=True)
class Measured:
    """One run's figures. Delays and latencies count from a request's arrival, gaps lie between a request's tokens."""

    tokens_per_s: float
    ttft_mean_s: float
    ttft_p99_s: float
    latency_p99_s: float
    gap_p50_ms: float
    gap_p99_ms: float
    peak_mb: float


def measured(requests: Sequence[Request], answer: Answer) -> Measured:
    """Return the figures of a run. Raises WrongAnswer if a request did not get exactly the tokens that it asked for."""
    outcomes = {each.id: each for each in answer.outcomes}
    for each in requests:
        got = len(outcomes[each.id].token_ids) if each.id in outcomes else 0
        if got != each.max_tokens:
            raise WrongAnswer(f"{each.id} got {got} tokens of {each.max_tokens}")
    firsts = [outcomes[each.id].times_s[0] - each.at_s for each in requests]
    ends = [outcomes[each.id].times_s[-1] - each.at_s for each in requests]
    between = gaps(list(outcomes.values())) or [0.0]
    return Measured(
        tokens_per_s=round(sum(each.max_tokens for each in requests) / answer.seconds, 2),
        ttft_mean_s=round(mean(firsts), 4),
        ttft_p99_s=round(share(firsts, 0.99), 4),
        latency_p99_s=round(share(ends, 0.99), 3),
        gap_p50_ms=round(1000 * median(between), 2),
        gap_p99_ms=round(1000 * share(between, 0.99), 2),
        peak_mb=answer.peak_mb,
    )


def gaps(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the seconds between one token and the next, of all requests.

    Tokens that came in the same moment are one delivery, so that drafts which were accepted count no gap of zero.
    """
    return [
        after - before
        for each in outcomes
        for before, after in zip(each.times_s, each.times_s[1:], strict=False)
        if after > before + _SAME_MOMENT_S
    ]


def share(values: Sequence[float], part: float) -> float:
    """Return the value below which ``part`` of them lie."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


_SAME_MOMENT_S = 1e-4
