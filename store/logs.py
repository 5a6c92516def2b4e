"""Structured logs on stderr, each with a fixed event name and fields: JSON, one object a line, or text on a terminal.

Newlines and control characters are escaped, so a value cannot start a line or move a terminal's cursor. The caller
never logs prompts, outputs and keys. This module leaves out the messages of exceptions that may quote a value, and the
DEBUG records of libraries.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import structlog

from headrace.store.errors import HeadraceError

# Chatty at INFO, and their records hold addresses of tenants or the names of every task.
_QUIET = ("alembic", "celery.app.trace", "celery.worker.strategy", "httpcore2", "httpx2", "kombu")
# The loggers with DEBUG records. Those of libraries would show their arguments: bodies, rows, messages.
# Exceptions with messages about code, memory or the operating system. Others, such as ValueError and the database's,
# quote values.
_PLAIN = (
    HeadraceError,
    ArithmeticError,
    AttributeError,
    ImportError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
)

_uncaught = structlog.get_logger("headrace")


def configure_logging(level: str) -> None:
    """Send structlog's events and the standard library's records to stderr. Call once, at start.

    They are lines for people if stderr is a terminal, JSON lines otherwise.

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
    root.setLevel(max(number, logging.INFO))
    logging.getLogger("headrace").setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(capture=True)
    sys.excepthook = _on_uncaught
    threading.excepthook = _on_uncaught_in_thread


def _formatter(foreign: list[Any]) -> structlog.stdlib.ProcessorFormatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=foreign,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _first_line_of_asyncio,
            structlog.processors.ExceptionRenderer(_tell),
            *(_for_people() if sys.stderr.isatty() else [_json_line]),
        ],
    )


# ensure_ascii also escapes U+2028, U+009B and the like, which some terminals obey.
_json_line = structlog.processors.JSONRenderer(ensure_ascii=True, default=str)


def _for_people() -> list[Any]:
    """Return the processors of a terminal: time, level, event, fields; a traceback follows in lines of its own."""
    return [_printable, structlog.dev.ConsoleRenderer(pad_event_to=24, sort_keys=False)]


def _printable(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape what is not printable; lines of a traceback stay lines."""
    for name, value in event.items():
        text = value if isinstance(value, str) else str(value)
        lines = text.split("\n") if name == "exception" else [text]
        event[name] = "\n".join(line if line.isprintable() else ascii(line)[1:-1] for line in lines)
    return event


def _first_line_of_asyncio(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Leave out the details that asyncio appends about a future, such as the exception that it ended with."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event


def _tell(exc_info: structlog.typing.ExcInfo) -> str:
    """Return the traceback, causes first, with the exceptions' kinds and only such sentences as quote nothing."""
    return "\n".join(_told(exc_info[1], set()))


def _told(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _told(before, seen)
        yield "and then:"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    yield f"{kind}: {error}" if isinstance(error, _PLAIN) else kind
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _told(one, seen)


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _uncaught.critical("uncaught", exc_info=(kind, error, trace))


def _on_uncaught_in_thread(caught: threading.ExceptHookArgs) -> None:
    if caught.exc_value is not None and not issubclass(caught.exc_type, SystemExit):
        thread = caught.thread.name if caught.thread else None
        _uncaught.critical(
            "uncaught", thread=thread, exc_info=(caught.exc_type, caught.exc_value, caught.exc_traceback)
        )
