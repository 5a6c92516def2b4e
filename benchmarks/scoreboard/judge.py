"""Judges a round by its records: what the callers were told, and what the model server witnessed. Pure.

It asks no process of the round and knows no contestant. The expected answers are those of ``tests.chaos.oracle``.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.scoreboard.load import Log, Told
from tests.chaos.oracle import answer


@dataclass(frozen=True)
class Score:
    """One contestant's round.

    ``lost``: accepted, and no end was reported until the round was over. ``failed``: told so, though nobody cancelled
    it. ``doubled``: more than one side effect. ``computed_twice``: the model made the whole answer more than once.
    ``wrong``: answers that are not the model's. ``streams``, ``holes``: streams of jobs that succeeded, and those of
    them that did not give exactly the answer; ``restarts`` were announced to readers. ``cancels``: accepted cancels of
    jobs that the model had not answered; ``cancel_s``: for each whose work stopped, the seconds until it did, sorted;
    ``not_stopped``: it went to its end. ``last_end_s``: from the last fault's end to the last job's.
    """

    accepted: int
    refused: int
    succeeded: int
    failed: int
    lost: int
    doubled: int
    computed_twice: int
    wrong: int
    streams: int
    holes: int
    restarts: int
    cancels: int
    cancel_s: Sequence[float]
    not_stopped: int
    last_end_s: float


def judge(log: Log, witnessed: Iterable[Mapping[str, Any]], faults_over_at: float) -> Score:
    """Return the round's score. ``witnessed``: the lines of the model server's log."""
    seen: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for line in witnessed:
        seen[line["order"]].append((line["at"], line["kind"]))
    kinds = {order: Counter(kind for _, kind in events) for order, events in seen.items()}
    states = Counter(told.state for told in log.jobs)
    good = [told for told in log.jobs if told.state == "succeeded"]
    read = [told for told in good if told.reads]
    cancelled = [told for told in log.jobs if told.cancel_at is not None and not _ended_before(told, seen)]
    stops = [stopped_after(told, seen.get(told.order.name, [])) for told in cancelled]
    names = [told.order.name for told in log.jobs]
    return Score(
        accepted=len(log.jobs),
        refused=log.refused,
        succeeded=states["succeeded"],
        failed=sum(told.state == "failed" and told.cancel_at is None for told in log.jobs),
        lost=states[None],
        doubled=sum(kinds[name]["effect"] > 1 for name in names if name in kinds),
        computed_twice=sum(kinds[name]["end"] > 1 for name in names if name in kinds),
        wrong=sum(told.text != _expected(told) for told in good if told.cancel_at is None),
        streams=len(read),
        holes=sum(text_of(told) != _expected(told) for told in read),
        restarts=sum(event.kind == "restart" for told in read for event in told.events[1:]),
        cancels=len(cancelled),
        cancel_s=sorted(round(stop, 2) for stop in stops if stop is not None),
        not_stopped=sum(stop is None for stop in stops),
        last_end_s=round(max((told.ended_at or 0 for told in log.jobs), default=0) - faults_over_at, 1),
    )


def text_of(told: Told) -> str:
    """Return what a reader holds at the end of the stream."""
    text = ""
    for event in told.events:
        text = event.text if event.kind == "restart" else text + event.text
    return text


def stopped_after(told: Told, events: Sequence[tuple[float, str]]) -> float | None:
    """Return the seconds from the cancel to the last moment of work; None if the work went to its end."""
    assert told.cancel_at is not None
    later = [(at, kind) for at, kind in events if at > told.cancel_at]
    if any(kind == "end" for _, kind in later):
        return None
    num_open = sum({"begin": 1, "gone": -1, "end": -1}.get(kind, 0) for _, kind in events)
    # Work that is still going on when the round ends has not stopped either.
    return None if num_open > 0 else max((at - told.cancel_at for at, _ in later), default=0.0)


def _expected(told: Told) -> str:
    return answer(told.order.name, told.order.num, ends=False)


def _ended_before(told: Told, seen: Mapping[str, Sequence[tuple[float, str]]]) -> bool:
    assert told.cancel_at is not None
    return any(kind == "end" and at < told.cancel_at for at, kind in seen.get(told.order.name, ()))
