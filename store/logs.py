"""Structured logs: one JSON object a line on stderr, each with a fixed event name and fields.

Escaping is JSON's: a newline or control character in a value cannot start a line or move a terminal's cursor. What
must never be logged (prompts, outputs, keys) is the caller's to leave out.
"""

import logging
import sys
from typing import Any

import structlog

# Chatty at INFO, and their records hold addresses of tenants or the names of every task.
_QUIET = ("celery.app.trace", "celery.worker.strategy", "httpcore2", "httpx2", "kombu")


def configure_logging(level: str) -> None:
    """Send structlog's events and the standard library's records to stderr as JSON lines. Call once, at start.

    Raises ValueError for a level that is not one of logging's names.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"unknown log level {level!r}: one of DEBUG, INFO, WARNING, ERROR, CRITICAL")
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _formatter(foreign: list[Any]) -> structlog.stdlib.ProcessorFormatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=foreign,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            # ensure_ascii also escapes U+2028, U+009B and the like, which some terminals obey.
            structlog.processors.JSONRenderer(ensure_ascii=True, default=str),
        ],
    )
