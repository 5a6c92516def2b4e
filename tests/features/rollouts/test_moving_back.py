"""Which jobs of a rollout that has ended are moved back, with rollouts that a test gives."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from headrace.features.rollouts import moves, rollout_keeper
from headrace.features.rollouts.metrics import RolloutMetrics
from headrace.features.rollouts.rollout_keeper import MOVED_ROWS, RolloutKeeper
from headrace.features.rollouts.rollouts import RolloutKind, RolloutMode

ANY: Any = None


class Rollouts:
    """A rollout whose evidence a test gives, and what the keeper does with it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mode: RolloutMode, kind: RolloutKind) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.mode, self.kind = mode, kind
        self.num_moved = MOVED_ROWS
        monkeypatch.setattr(moves, "move_queued", self.move)

    def move(self, _db: Any, rollout: Any, most: int) -> int:
        self.told.append(("move", rollout.id, most))
        return self.num_moved


@pytest.mark.parametrize(
    ("mode", "kind", "moves_jobs"),
    [
        (RolloutMode.SHADOW, RolloutKind.MODEL, False),
        (next(mode for mode in RolloutMode if mode is not RolloutMode.SHADOW), RolloutKind.PIPELINE, False),
        (next(mode for mode in RolloutMode if mode is not RolloutMode.SHADOW), RolloutKind.MODEL, True),
    ],
)
def test_only_the_jobs_of_a_model_that_callers_have_are_moved(
    monkeypatch: pytest.MonkeyPatch, mode: RolloutMode, kind: RolloutKind, moves_jobs: bool
) -> None:
    store = Rollouts(monkeypatch, mode, kind)
    state = type("State", (), {"is_active": False})
    ended: Any = type("Rollout", (), {"id": "rol_1", "mode": mode, "kind": kind, "state": state})
    monkeypatch.setattr(rollout_keeper, "rollouts_under_way", lambda _db: [ended])
    registry = CollectorRegistry()
    keeper = RolloutKeeper(ANY, RolloutMetrics(registry))
    assert keeper.turn() is moves_jobs
    store.num_moved = MOVED_ROWS - 1
    assert keeper.turn() is False
    assert store.told == ([("move", "rol_1", 200)] * 2 if moves_jobs else [])
    moved = registry.get_sample_value("headrace_rollout_jobs_moved_total")
    assert moved == (2 * MOVED_ROWS - 1 if moves_jobs else 0)
