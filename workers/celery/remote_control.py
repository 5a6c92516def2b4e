"""Restricts Celery's remote control of a worker to commands that read.

A client with write access to Redis can send a command to every worker, and some of Celery's commands end the worker,
revoke its tasks or change its queues. Flower needs only those that read. Jobs are cancelled through the API, workers
are stopped by signals.
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
    """A worker's mailbox that accepts only the commands of ``READING``."""

    def handle(self, method: object, arguments: Any = None) -> Any:
        """Run a command, or refuse it in the answer."""
        if method in READING:
            return super().handle(method, arguments)  # type: ignore[no-untyped-call]
        log.warning("control_refused", command=str(method)[:_LONGEST])
        return {"error": "refused: this worker's remote control reads only (HEADRACE_CELERY_CONTROL)"}


def only_reading(app: Celery) -> None:
    """Give the worker of this app a ``ReadingNode``. Call it before the worker is made."""
    app.control.mailbox.node_cls = ReadingNode
