"""Why a job lost its worker: a fault that the nemesis injected, or a poison job that kills its worker.

Three worker deaths make a job poison, whatever the cause: a worker that is cut off from Postgres for longer than a
lease also looks dead. So a normal job may fail as poison after three different injected faults, but not after fewer,
and each poison job counts only once.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.chaos.history import Attempt, History

MAX_CRASHES = 3
DEADLY = frozenset({"SIGKILL", "SIGSTOP"})
# A worker stopped at a failpoint gets no stop signal, but a continue signal, at most this much later.
STOOD_STILL_S = 15.0
# Faults that cut a living worker off from Postgres.
KEEPS_AWAY = frozenset({"connections_out", "disk_full"})
VIOLENT = frozenset({70, 86, -9})
# A hung engine loses its lease some seconds before its process ends.
SOON_S = 6.0

Cause = tuple[str, object]


class Causes:
    """The faults of a run that may have cost an attempt. ``poisonous``: the ids of poison jobs."""

    def __init__(self, history: History, poisonous: frozenset[str]) -> None:
        self._signals = defaultdict(list)
        self._went_on = defaultdict(list)
        for event in history.of_nemesis("signal"):
            if event["member"] == "worker" and event["signal"] in DEADLY:
                self._signals[str(event["pid"])].append(float(event["t"]))
            elif event["member"] == "worker" and event["signal"] == "SIGCONT":
                self._went_on[str(event["pid"])].append(float(event["t"]))
        self._ends = {str(one["pid"]): one for one in history.of_nemesis("exit") if one["code"] in VIOLENT}
        self._outages = list(_outages(history))
        self._of_job = defaultdict(list)
        self._killers = defaultdict(list)
        for one in history.attempts:
            self._of_job[one.job].append(one)
            if one.job in poisonous:
                self._killers[one.worker].append(one)

    def explain(self, job: str) -> bool:
        """True if the job met so many different faults that it had to count as poison."""
        lost = [set(self._of(one)) for one in self._of_job[job] if one.outcome != "succeeded"]
        return _most_different([causes for causes in lost if causes]) >= MAX_CRASHES

    def _of(self, attempt: Attempt) -> Iterator[Cause]:
        began, ended = attempt.started_at, attempt.ended_at or float("inf")
        yield from (("signal", at) for at in self._signals[attempt.pid] if began <= at <= ended)
        yield from (("signal", at) for at in self._went_on[attempt.pid] if began <= at <= ended + STOOD_STILL_S)
        for killer in self._killers[attempt.worker]:
            if killer.started_at <= ended and began <= (killer.ended_at or float("inf")):
                yield "poison", killer.job
        end = self._ends.get(attempt.pid)
        if attempt.outcome == "worker_lost" and (end is None or end["t"] > ended + SOON_S):
            yield from (("outage", since) for since, until in self._outages if since <= ended and began <= until)


def _outages(history: History) -> Iterator[tuple[float, float]]:
    """Periods in which workers could not reach Postgres reliably."""
    overs = defaultdict(list)
    for event in history.of_nemesis("strike_over"):
        overs[event["fault"]].append(float(event["t"]))
    for event in history.of_nemesis("strike"):
        fault, since = event["fault"], float(event["t"])
        if (fault.startswith("postgres_") or fault in KEEPS_AWAY) and event["target"] not in ("api", "dispatcher"):
            yield since, min((at for at in overs[fault] if at >= since), default=float("inf"))


def _most_different(lost: Sequence[set[Cause]], taken: frozenset[Cause] = frozenset()) -> int:
    """Return the number of attempts with a cause of their own, each cause used once."""
    if not lost:
        return 0
    first, rest = lost[0], lost[1:]
    return max([_most_different(rest, taken), *(1 + _most_different(rest, taken | {one}) for one in first - taken)])
