"""What is kept for a moment is read again before that is over, and whoever comes next does not wait for it."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, event

from producer_api.caches.limit_cache import LimitBook
from producer_api.caches.model_catalog import KEEP_S, Catalog
from producer_api.submission import cache_refresh
from producer_api.submission.cache_refresh import Renewing
from producer_api.submission.input_policy import PolicyBook
from store.db.database import Database
from store.errors import Unavailable
from store.registry import models
from store.registry.models import ModelVersion
from store.settings import Settings
from store.tenants import api_keys
from store.tenants.api_keys import Principal


class Kept:
    """Everything that is kept, at a time that the test says."""

    def __init__(self, settings: Settings, db: Database, principal: Principal, model: str) -> None:
        self.now = 0.0
        self.catalog = Catalog(db, clock=lambda: self.now)
        self.limits = LimitBook(settings, db, clock=lambda: self.now)
        self.policies = PolicyBook(db, clock=lambda: self.now)
        self.renewing = Renewing(self.catalog, self.limits, self.policies)
        self.who, self.model = principal, model

    def look(self) -> None:
        self.limits.held_by([self.who])
        self.policies.policy_for(self.who.tenant_id, self.catalog.resolve(self.model).model)

    async def submitted(self) -> None:
        """As after a submission, and then until nobody has submitted for a while."""
        self.renewing.note(self.who, self.model)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})


@pytest.fixture
def kept(settings: Settings, db: Database, key: str, model: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setattr(cache_refresh, "EVERY_S", 0.02)
    monkeypatch.setattr(cache_refresh, "LINGER_S", 0.1)
    return Kept(settings, db, api_keys.authenticate(db, key), model.model)


@pytest.fixture
def statements() -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


async def test_who_comes_when_it_would_have_been_forgotten_reads_nothing(kept: Kept, statements: list[str]) -> None:
    kept.look()
    kept.now = 0.6 * KEEP_S
    await kept.submitted()
    kept.now = 1.2 * KEEP_S
    statements.clear()
    kept.look()
    assert statements == []


async def test_what_is_new_is_left_alone(kept: Kept, statements: list[str]) -> None:
    kept.look()
    kept.now = 0.4 * KEEP_S
    statements.clear()
    await kept.submitted()
    assert statements == []
    kept.now = KEEP_S
    kept.look()
    assert len(statements) == 2, "nothing is used for longer than before"


async def test_it_ends_when_it_is_told_to(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_refresh, "LINGER_S", 3600.0)
    kept.look()
    kept.renewing.note(kept.who, kept.model)
    await kept.renewing.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_database_that_is_away_is_told_to_whoever_needs_it(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise Unavailable("away")

    kept.look()
    kept.now = 0.6 * KEEP_S
    monkeypatch.setattr(models, "resolve", away)
    await kept.submitted()
    kept.look()
    kept.now = KEEP_S
    with pytest.raises(Unavailable):
        kept.look()
