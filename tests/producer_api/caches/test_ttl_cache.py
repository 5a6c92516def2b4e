"""A cached entry is read again before its time is over, so that the next caller does not wait for Postgres."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, event

from headrace.features.policy.input_policy import active_policies
from headrace.producer_api.access.rate_limits import LimitCache
from headrace.producer_api.caches import ttl_cache
from headrace.producer_api.caches.model_catalog import KEEP_S, ModelCatalog
from headrace.producer_api.caches.ttl_cache import RECENT_S, LoadingCache
from headrace.producer_api.submission.text_guard import TextGuards
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, NotFound, Unavailable
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from headrace.store.tenants.api_keys import Principal


class Caches:
    """All caches of a submission, with a clock that the test sets."""

    def __init__(self, settings: Settings, db: Database, principal: Principal, model: str) -> None:
        self.now = 0.0
        self.catalog = ModelCatalog(db, clock=lambda: self.now)
        self.limits = LimitCache(settings, db, clock=lambda: self.now)
        parts: Any = SimpleNamespace(db=db)
        self.guards = TextGuards(active_policies(parts), clock=lambda: self.now)
        self.principal, self.model = principal, model

    def look(self) -> None:
        self.limits.held_by(self.principal)
        self.guards.in_force(self.principal.tenant_id, self.catalog.resolve(self.model).model)

    def refresh(self) -> None:
        for cache in (self.catalog, self.limits, self.guards):
            cache.refresh()


@pytest.fixture
def caches(settings: Settings, db: Database, key: str, model: ModelVersion) -> Caches:
    return Caches(settings, db, api_keys.authenticate(db, key), model.model)


@pytest.fixture
def statements() -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


def test_a_caller_after_the_time_of_the_first_read_reads_nothing(caches: Caches, statements: list[str]) -> None:
    caches.look()
    caches.now = 0.6 * KEEP_S
    caches.refresh()
    caches.now = 1.2 * KEEP_S
    statements.clear()
    caches.look()
    assert statements == []


def test_a_new_entry_is_left_alone(caches: Caches, statements: list[str]) -> None:
    caches.look()
    caches.now = 0.4 * KEEP_S
    statements.clear()
    caches.refresh()
    assert statements == []
    caches.now = KEEP_S
    caches.look()
    assert len(statements) == 2, "limits and version: no entry is used for longer than its time"


def test_an_entry_that_is_not_used_is_not_refreshed_for_ever(caches: Caches, statements: list[str]) -> None:
    caches.look()
    caches.now = RECENT_S
    statements.clear()
    caches.refresh()
    assert statements == []


@pytest.mark.parametrize("error", [Unavailable("away"), NotFound("gone")])
def test_what_cannot_be_read_is_an_error_for_the_next_caller(
    caches: Caches, monkeypatch: pytest.MonkeyPatch, error: HeadraceError
) -> None:
    def away(*_: object) -> None:
        raise error

    caches.look()
    caches.now = 0.6 * KEEP_S
    monkeypatch.setattr(models, "resolve", away)
    caches.refresh()
    caches.look()
    caches.now = KEEP_S
    with pytest.raises(type(error)):
        caches.look()


def test_the_last_used_entries_alone_are_refreshed_and_missing_ones_are_loaded_together() -> None:
    now, loads = [0.0], list[Sequence[int]]()

    def load(keys: Sequence[int]) -> dict[int, int]:
        loads.append(keys)
        return {key: -key for key in keys}

    cache = LoadingCache(load, ttl_s=2.0, max_size=100, clock=lambda: now[0])
    assert cache.get_all([1, 2, 1]) == {1: -1, 2: -2}
    assert [cache.get(key) for key in range(3, 3 + ttl_cache.MAX_RECENT)] == [
        -key for key in range(3, 3 + ttl_cache.MAX_RECENT)
    ]
    assert loads[:2] == [[1, 2], [3]]
    loads.clear()
    now[0] = 1.0
    cache.refresh()
    assert loads == [[key] for key in range(3, 3 + ttl_cache.MAX_RECENT)]
    cache.forget(lambda value: value == -3)
    assert (cache.fresh(3), cache.fresh(4), cache.last(3)) == (None, -4, None)
    now[0] = 3.0
    assert (cache.fresh(4), cache.last(4)) == (None, -4)
