"""Aliases with a rollout are known with their version, so that others cost no statement of rollouts."""

import pytest

from headrace.features.rollouts.changes import change
from headrace.features.rollouts.transitions import RolloutAction, Transition
from headrace.store.db.database import Database
from headrace.store.registry.models import resolve
from headrace.store.registry.versions import set_alias
from tests.features.rollouts.conftest import StartRollout


@pytest.mark.parametrize("name", ["tiny", "tiny@default"])
def test_an_alias_is_divided_while_its_rollout_is_active(begin: StartRollout, db: Database, name: str) -> None:
    rollout = begin()
    set_alias(db, "tiny", "other", 1, "tests")
    assert (resolve(db, name).version, resolve(db, name).is_divided) == (1, True)
    assert [resolve(db, other).is_divided for other in ("tiny@1", "tiny@2", "tiny@other")] == [False] * 3
    change(db, rollout.id, Transition(RolloutAction.ABORT, "enough"), "tests")
    assert not resolve(db, name).is_divided
