"""What Celery's remote control may do to a worker: be asked, and nothing more.

Whoever can write to Redis can send a command to every worker, and some of Celery's end it, revoke its tasks or change
its queues. Flower needs those that read. Jobs are cancelled through the API, workers are stopped by signals.
"""

from typing import Any

import structlog
from celery import Celery
from kombu.pidbox import Node

log = structlog.get_logger(__name__)

READING = frozenset(
    {
        "active",
        "active_queues",
        "clock",
        "conf",
        "enable_events",
        "heartbeat",
        "ping",
        "query_task",
        "registered",
        "reserved",
        "revoked",
        "scheduled",
        "stats",
    }
)
_LONGEST = 64


class ReadingNode(Node):
    """A worker's mailbox that refuses every command not known to change nothing."""

    def handle(self, method: object, arguments: Any = None) -> Any:
        """Run a command, or answer that it is refused."""
        if method in READING:
            return super().handle(method, arguments)  # type: ignore[no-untyped-call]
        log.warning("control_refused", command=str(method)[:_LONGEST])
        return {"error": "refused: this worker's remote control reads only (HEADRACE_CELERY_CONTROL)"}


def only_reading(app: Celery) -> None:
    """Let the worker of this Celery app have a ``ReadingNode``; to be called before the worker is made."""
    app.control.mailbox.node_cls = ReadingNode
