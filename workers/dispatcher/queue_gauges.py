"""The duty that measures the queues for the metrics page."""

from headrace.store.db.database import Database
from headrace.store.db.presence import read_serving
from headrace.store.metrics.dispatcher_metrics import DispatcherMetrics
from headrace.store.scheduling.backlog import read_backlog
from headrace.store.scheduling.queue_ages import read_queue_ages


class QueueMeasurement:
    """Measures. ``num_tenants``: the number of tenants with a series of their own."""

    def __init__(self, db: Database, metrics: DispatcherMetrics, *, num_tenants: int) -> None:
        self._db = db
        self._metrics = metrics
        self._num_tenants = num_tenants

    def turn(self) -> None:
        """Replace the gauges. Raises Unavailable."""
        backlog = read_backlog(self._db)
        self._metrics.queues.set(
            backlog.computed,
            read_queue_ages(self._db),
            {queue: serving.workers for queue, serving in read_serving(self._db).items()},
            backlog.paused,
            num_tenants=self._num_tenants,
        )
