"""What a feature adds to the dispatcher: duties, work that the probe looks for, and what runs while it leads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from headrace.store.db.database import Database
from headrace.store.keeper import Duty
from headrace.store.metrics.dispatcher_metrics import DispatcherMetrics
from headrace.store.scheduling.work_probe import PendingWork
from headrace.store.settings import Settings
from headrace.store.tracing.tracing import Tracing


@dataclass(frozen=True, slots=True)
class DispatcherContext:
    """What the dispatcher gives to the work of a feature.

    ``nudge``: ends open streams of ended jobs at once. ``forget_streams`` deletes jobs' streams in Redis.
    """

    db: Database
    settings: Settings
    metrics: DispatcherMetrics
    tracing: Tracing
    nudge: Callable[[Iterable[str]], None]
    forget_streams: Callable[[Iterable[str]], None]


class DispatcherWork:
    """The work of a feature in one dispatcher. A feature overrides what it needs.

    ``duties``: groups, as of ``DutyGroup``. They run while the dispatcher leads, and no other duty waits for them.
    """

    duties: Sequence[Sequence[Duty]] = ()

    def begin_leading(self) -> None:
        """Start what runs beside the duties. Called each time when the dispatcher begins to lead; must not block."""

    def end_leading(self, timeout_s: float) -> None:
        """Stop it, within ``timeout_s`` seconds."""

    def notice(self, due: PendingWork) -> None:
        """Learn which work is due, after each probe. Must not block."""

    def clear(self) -> None:
        """Drop the metrics that only a leader knows."""


@dataclass(frozen=True, slots=True)
class DispatcherPart:
    """The ``PART`` of a feature's file ``dispatcher``.

    ``build`` makes the work of one dispatcher; it raises SettingsError for settings that cannot be used. ``probes``:
    for a kind of work, a scalar subquery that is true if some is due; it must be the first entry of an index.
    """

    build: Callable[[DispatcherContext], DispatcherWork]
    probes: Mapping[str, str] = field(default_factory=dict)
