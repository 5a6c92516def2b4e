"""Two versions of a model without weights, and rollouts from the first to the second."""

from typing import Any, Protocol

import pytest

from headrace.features.rollouts.changes import NewRollout, start
from headrace.features.rollouts.rollouts import Rollout, Step, StickyKey
from headrace.store.db.database import Database
from tests.store.registry.test_models import register


class StartRollout(Protocol):
    """Starts a rollout of ``tiny``; every field can be given."""

    def __call__(self, **changes: Any) -> Rollout: ...


@pytest.fixture
def begin(db: Database) -> StartRollout:
    register(db)
    register(db, digest="d2")

    def begin(**changes: Any) -> Rollout:
        values: dict[str, Any] = {
            "model": "tiny",
            "candidate": 2,
            "steps": [Step(10, hold_s=60), Step(50, hold_s=60, min_jobs=5)],
            "sticky_key": StickyKey.USER,
        }
        return start(db, NewRollout(**{**values, **changes}), "tests")

    return begin
