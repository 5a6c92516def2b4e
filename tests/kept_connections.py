"""Connections to the session's database that outlive the `Database` of one test.

A new connection costs a process of the server, which has to read the catalogue again, and a new engine some statements
and the compilation of all others. Both are the same for each of the thousands of tests. So engines with the same
arguments share their dialect and their compiled statements, and a closed connection is given to the next engine with
these arguments, after DISCARD ALL: it is then as new, with the role and the settings of its start. Pools are not
shared. Processes that tests start connect as always, and so does a test with the fixture ``fresh_connections``.
"""

import select
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import psycopg
import pytest
from psycopg.adapt import AdaptersMap
from psycopg.pq import ExecStatus, TransactionStatus
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.util import LRUCache

from headrace.store.db import database
from headrace.store.db.database import parse_url

_MOST = 24
"""Idle connections of this process, far fewer than the server allows."""
_MOST_ENGINES = 100


class _Kept:
    """Idle connections, each with the engine whose arguments it has."""

    def __init__(self) -> None:
        self._idle: deque[tuple[Engine, Any]] = deque()

    def take(self, engine: Engine) -> Any:
        """Return an idle connection of ``engine``, or None."""
        for entry in reversed([*self._idle]):
            if entry[0] is engine:
                try:
                    self._idle.remove(entry)
                except ValueError:  # another thread was faster
                    continue
                if not _is_readable(entry[1]):
                    return entry[1]
                entry[1].finish()
        return None

    def connect(self, engine: Engine, cargs: Any, cparams: Any) -> Any:
        pgconn = self.take(engine)
        if pgconn is None:
            connection = _Connection.connect(*cargs, **cparams)
        else:
            connection = _Connection(pgconn)
            connection.adapt_as(cparams["context"])
        connection.when_closed = lambda: self.keep(engine, connection.pgconn)
        return connection

    def keep(self, engine: Engine, pgconn: Any) -> None:
        """Keep an idle connection, as new; close any other, and the oldest of too many."""
        idle = pgconn.transaction_status == TransactionStatus.IDLE and not _is_readable(pgconn)
        if not idle or pgconn.exec_(b"DISCARD ALL").status != ExecStatus.COMMAND_OK:
            pgconn.finish()
            return
        self._idle.append((engine, pgconn))
        if len(self._idle) > _MOST:
            self._idle.popleft()[1].finish()

    def close(self) -> None:
        while self._idle:
            self._idle.popleft()[1].finish()


class _Connection(psycopg.Connection[Any]):
    """A connection that is kept when it is closed."""

    when_closed: Callable[[], None] | None = None

    def adapt_as(self, context: Any) -> None:
        self._adapters = AdaptersMap(context.adapters)

    def close(self) -> None:
        if self.when_closed is None:
            super().close()
            return
        # This object has no part in what is done with the kept connection.
        keep, self.when_closed = self.when_closed, None
        keep()

    def __del__(self) -> None:
        if self.when_closed is not None:  # it was forgotten: psycopg warns
            super().__del__()


def _is_readable(pgconn: Any) -> bool:
    """True if the server closed the connection, or said something that nobody has read."""
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


class _Compiled:
    """Compiled statements of several engines with equal dialects: SQLAlchemy's key begins with the dialect."""

    def __init__(self) -> None:
        self._shared: Any = LRUCache(500)

    def get(self, key: tuple[Any, ...]) -> Any:
        return self._shared.get(key[1:])

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        self._shared[key[1:]] = compiled


def _first_engine(kept: _Kept, url: URL, options: dict[str, Any]) -> Engine:
    """Make the engine that others copy; it has asked the server what a dialect asks once."""
    engine = create_engine(url, **options)
    event.listen(engine, "do_connect", lambda _dialect, _record, args, named: kept.connect(engine, args, named))
    engine.connect().close()
    engine.dispose()
    return engine


@contextmanager
def kept_connections(database_url: str) -> Iterator[None]:
    """In the block, each `Database` of ``database_url`` uses connections again that others closed."""
    server, kept = parse_url(database_url), _Kept()
    engines, statements = dict[str, Engine](), dict[str, _Compiled]()

    def create(url: URL, **options: Any) -> Engine:
        if url.set(username=None, password=None) != server.set(username=None, password=None):
            return create_engine(url, **options)
        key = f"{url.render_as_string(hide_password=False)} {options}"
        if key not in engines:
            if len(engines) == _MOST_ENGINES:
                return create_engine(url, **options)
            engines[key], statements[key] = _first_engine(kept, url, options), _Compiled()
        first = engines[key]
        # A copy with what the dialect has asked the server, but without listeners: each `Database` adds its own.
        dialect = copy(first.dialect)
        dialect.__dict__.pop("dispatch")
        # As Engine.dispose makes a new pool.
        shared = {"compiled_cache": statements[key]}
        return Engine(first.pool.recreate(), dialect, first.url, hide_parameters=True, execution_options=shared)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "create_engine", create)
        try:
            yield
        finally:
            kept.close()
