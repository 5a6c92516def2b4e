"""How the ready windows are filled, with queues that a test gives: how many hints, and of which jobs."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.store.redis.celery_queue import Hint
from headrace.store.scheduling import dispatch_queries
from headrace.store.scheduling.dispatch_queries import QueueDepth
from headrace.store.settings import Settings
from headrace.workers.dispatcher import ready_window
from headrace.workers.dispatcher.ready_window import ReadyWindow

ANY: Any = None


class Redis:
    """The queues in Redis; each has so many hints."""

    def __init__(self, in_redis: int) -> None:
        self.in_redis = in_redis
        self.published: list[Hint] = []

    def depth(self, _queue: str) -> int:
        return self.in_redis

    def publish(self, hints: list[Hint]) -> None:
        self.published += hints

    def close(self) -> None:
        """Nothing is open."""


class Waiting:
    """The waiting jobs in Postgres."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *depths: QueueDepth) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.candidates: list[str] = []
        monkeypatch.setattr(dispatch_queries, "waiting_queues", lambda _db, **how: self.noted(depths, *how.items()))
        monkeypatch.setattr(dispatch_queries, "take_stale", self.stale)
        monkeypatch.setattr(dispatch_queries, "take_waiting", self.waiting)
        monkeypatch.setattr(dispatch_queries, "task_of", lambda _db, job_id: self.noted("embed", "task", job_id))
        monkeypatch.setattr(ready_window, "read_candidates", self.read)
        monkeypatch.setattr(ready_window, "within_share", lambda _db, entries, *_, **__: {one.id for one in entries})

    def noted(self, answer: Any, *given: Any) -> Any:
        self.asked.append(given)
        return answer

    def stale(self, _db: Any, queue: str, after_s: float, most: int) -> list[str]:
        return [f"lost{number}" for number in range(self.noted(most, "stale", queue, after_s, most))]

    def waiting(self, _db: Any, queue: str, most: int, _robin: Any, *, most_batch: int) -> list[str]:
        return [f"job{number}" for number in range(self.noted(most, "waiting", queue, most, most_batch))]

    def read(self, _db: Any, job_ids: list[str]) -> list[Any]:
        self.candidates += job_ids
        rank = {"job0": 0, "job1": 2}
        return [type("Entry", (), {"id": one, "class_rank": rank.get(one, 1)}) for one in job_ids]


def window(monkeypatch: pytest.MonkeyPatch, redis: Redis) -> ReadyWindow:
    monkeypatch.setattr(ready_window, "HintPublisher", lambda _app: redis)
    monkeypatch.setattr(ready_window, "celery_app", lambda _settings: None)
    settings = Settings(ready_window=10, reannounce_s=20.0, batch_share=0.5, max_slots=32)
    return ReadyWindow(ANY, settings, start_generation=lambda: False, forget_generation=lambda: None)


def test_lost_hints_come_first_and_take_room_from_the_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    depth = QueueDepth("tiny@3", 40, 6, 20.0, batch_under_way=1, num_slots=8)
    paused = QueueDepth("other@1", 40, 6, 20.0, is_paused=True)
    found, redis = Waiting(monkeypatch, paused, depth), Redis(4)
    one = window(monkeypatch, redis)
    with capture_logs():
        one.top_up()
    assert found.asked == [
        (("most", 40), ("usual_slots", 32)),
        ("stale", "tiny@3", 20.0, 2),
        ("task", "lost0"),
        ("waiting", "tiny@3", 4, 3),
    ]
    ahead = {"job0", "job2", "job3"}
    assert redis.published == [
        *[Hint(f"lost{number}", "tiny@3", "embed:tiny@3", goes_ahead=False) for number in range(2)],
        *[Hint(f"job{number}", "tiny@3", "embed:tiny@3", f"job{number}" in ahead) for number in range(4)],
    ]
    assert found.candidates == ["job0", "job1", "job2", "job3"]


def test_an_empty_queue_has_no_fast_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    found, redis = Waiting(monkeypatch, QueueDepth("tiny@3", 2, 0, None, num_slots=8)), Redis(0)
    one = window(monkeypatch, redis)
    one.top_up()
    one.top_up()
    assert (found.candidates, {hint.goes_ahead for hint in redis.published}) == ([], {False})
    assert [one for one in found.asked if one[0] == "task"] == [("task", "job0")], "a queue has one task"
