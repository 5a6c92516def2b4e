"""The metrics of rollouts in one dispatcher. The leader alone has them."""

from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge

from headrace.features.rollouts.rollouts import Rollout
from headrace.store.metrics.registry import begin


class Judgement(NamedTuple):
    """A running rollout: seconds for which its step has been over without passing, and its undecided checks."""

    model: str
    alias: str
    overdue_s: float
    num_undecided: int


class RolloutMetrics:
    """The metrics, each as an attribute."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.percent = Gauge(
            "headrace_rollout_percent",
            "share of an active rollout's sticky keys that goes to the candidate, in percent",
            ["model", "alias", "state"],
            registry=registry,
        )
        self.overdue = Gauge(
            "headrace_rollout_overdue_seconds",
            "how long the step of a running rollout has been over without passing",
            ["model", "alias"],
            registry=registry,
        )
        self.undecided = Gauge(
            "headrace_rollout_undecided_checks",
            "checks of a running rollout that the judge finds neither good nor bad",
            ["model", "alias"],
            registry=registry,
        )
        self.transitions = Counter(
            "headrace_rollout_transitions",
            "what the dispatcher did to rollouts: advanced, promoted, aborted, rolled_back",
            ["action"],
            registry=registry,
        )
        begin(self.transitions, "advanced", "promoted", "aborted", "rolled_back")
        self.jobs_moved = Counter(
            "headrace_rollout_jobs_moved", "queued jobs moved back to the stable version", registry=registry
        )

    def clear(self) -> None:
        """Drop what only the leader knows."""
        self.show_rollouts(())
        self.show_judgements(())

    def show_rollouts(self, active: Iterable[Rollout]) -> None:
        """Replace the series of the active rollouts."""
        self.percent.clear()
        for rollout in active:
            self.percent.labels(rollout.model, rollout.alias, rollout.state.value).set(rollout.percent)

    def show_judgements(self, judgements: Iterable[Judgement]) -> None:
        """Replace what the judge thinks of the running rollouts."""
        self.overdue.clear()
        self.undecided.clear()
        for one in judgements:
            self.overdue.labels(one.model, one.alias).set(one.overdue_s)
            self.undecided.labels(one.model, one.alias).set(one.num_undecided)
