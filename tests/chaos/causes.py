"""Who took a worker from a job: the nemesis's signal to that process, or a job that kills whatever runs it.

Three deaths make a job poison, and no system can tell whose fault they were. So a job that asked for nothing bad may
be condemned by three different strokes of the nemesis; by less it may not, and by one poison job only once.
"""

from collections import defaultdict

from tests.chaos.history import Attempt, History

MAX_CRASHES = 3
DEADLY = frozenset({"SIGKILL", "SIGSTOP"})
Cause = tuple[str, object]


class Causes:
    """The strokes of a run that may have cost an attempt. ``poisonous`` are the ids of the jobs that kill."""

    def __init__(self, history: History, poisonous: frozenset[str]) -> None:
        self._signals = defaultdict(list)
        for event in history.of_nemesis("signal"):
            if event["member"] == "worker" and event["signal"] in DEADLY:
                self._signals[str(event["pid"])].append(float(event["t"]))
        self._of_job = defaultdict(list)
        self._killers = defaultdict(list)
        for one in history.attempts:
            self._of_job[one.job].append(one)
            if one.job in poisonous:
                self._killers[one.worker].append(one)

    def explain(self, job: str) -> bool:
        """True if the job met so many different strokes that it had to be taken for poison."""
        lost = [one for one in self._of_job[job] if one.outcome != "succeeded"]
        return len({cause for one in lost if (cause := self._of(one)) is not None}) >= MAX_CRASHES

    def _of(self, attempt: Attempt) -> Cause | None:
        until = attempt.ended_at or float("inf")
        for at in self._signals[attempt.pid]:
            if attempt.started_at <= at <= until:
                return "signal", at
        for killer in self._killers[attempt.worker]:
            if killer.started_at <= until and attempt.started_at <= (killer.ended_at or float("inf")):
                return "poison", killer.job
        return None
