"""Frames between the engine and Redis: order, coalescing, bounds, and a Redis that is away."""

import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
import redis

from headrace.models.engine.requests import Delta
from headrace.store.settings import Settings
from headrace.store.streams.checkpoints import Checkpoint
from headrace.store.streams.stream_log import Frame, StreamPublisher, stream_key
from headrace.workers.runs.in_flight import AttemptId
from headrace.workers.runs.stream_publisher import ExponentialBackoff, FrameQueue
from tests.processes import WAIT_S, wait_for


class Gate:
    """A publisher that waits to be let through and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[list[Frame]] = []
        self.entered = threading.Event()
        self.open = threading.Event()
        self.failing = False

    def publish(self, frames: Sequence[Frame]) -> int:
        self.entered.set()
        assert self.open.wait(4 * WAIT_S)
        if self.failing:
            raise ConnectionError("redis is away")
        self.calls.append(list(frames))
        return len(frames)


def delta(job_id: str, seq: int, epoch: int = 1) -> Delta:
    return Delta(AttemptId(job_id, epoch), seq, f"text {seq}", (seq,))


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def frames(gate: Gate) -> Iterator[FrameQueue]:
    queue = FrameQueue(gate, max_frames=10)
    queue.start()
    yield queue
    gate.open.set()
    queue.stop(WAIT_S)


def test_what_comes_during_a_call_goes_out_together_in_the_next(frames: FrameQueue, gate: Gate) -> None:
    frames.put_deltas([delta("a", 1), delta("b", 1)])
    assert gate.entered.wait(WAIT_S)
    frames.put_deltas([delta("a", 2)])
    frames.put_deltas([delta("a", 3), delta("b", 2)])
    frames.put_end(AttemptId("a", 1))
    gate.open.set()
    assert frames.flush(WAIT_S)
    assert [[(frame.job_id, frame.seq) for frame in call] for call in gate.calls] == [
        [("a", 1), ("b", 1)],
        [("a", 2), ("a", 3), ("b", 2), ("a", 4)],
    ]
    assert gate.calls[1][-1] == Frame("a", 1, 4, None)


def test_the_engine_never_waits_and_a_full_queue_drops(frames: FrameQueue, gate: Gate) -> None:
    frames.put_deltas([delta("a", 1)])
    assert gate.entered.wait(WAIT_S)
    for seq in range(2, 40):
        frames.put_deltas([delta("a", seq)])
    assert frames.num_dropped == 28, "38 came while the call was under way, 10 had room"
    gate.open.set()
    assert frames.flush(WAIT_S)
    assert [frame.seq for call in gate.calls for frame in call] == list(range(1, 12))


def test_after_a_drop_sequence_numbers_go_on_as_the_engine_gave_them(frames: FrameQueue, gate: Gate) -> None:
    frames.put_deltas([delta("a", 1)])
    assert gate.entered.wait(WAIT_S)
    frames.put_deltas([delta("b", seq) for seq in range(1, 11)])
    frames.put_deltas([delta("a", 2)])  # dropped
    gate.open.set()
    assert frames.flush(WAIT_S)
    frames.put_deltas([delta("a", 3)])
    frames.put_end(AttemptId("a", 1))
    assert frames.flush(WAIT_S)
    assert [frame.seq for call in gate.calls for frame in call if frame.job_id == "a"] == [1, 3, 4]


def test_a_dead_redis_costs_one_attempt_and_then_frames_are_dropped(gate: Gate) -> None:
    now = [100.0]
    queue = FrameQueue(gate, clock=lambda: now[0])
    queue.start()
    gate.open.set()
    gate.failing = True
    for seq in range(1, 6):
        queue.put_deltas([delta("a", seq)])
        assert queue.flush(WAIT_S)
    assert (queue.num_dropped, queue.num_published, gate.calls) == (5, 0, [])
    gate.failing = False
    queue.put_deltas([delta("a", 6)])
    assert queue.flush(WAIT_S)
    assert gate.calls == [], "the breaker is open"
    now[0] += 1
    queue.put_deltas([delta("a", 7)])
    queue.stop(WAIT_S)
    assert [[frame.seq for frame in call] for call in gate.calls] == [[7]]


def test_a_stop_publishes_what_is_queued(frames: FrameQueue, gate: Gate) -> None:
    frames.put_deltas([delta("a", 1)])
    frames.put_end(AttemptId("a", 1))
    gate.open.set()
    frames.stop(WAIT_S)
    assert [frame.seq for call in gate.calls for frame in call] == [1, 2]


def test_an_attempt_that_goes_on_begins_with_its_start_and_ends_behind_it(frames: FrameQueue, gate: Gate) -> None:
    gate.open.set()
    start = Checkpoint(("x", "y"), ((1,), (2,)), ((1, 0), (2, 2)))
    frames.put_start(AttemptId("a", 2), start)
    frames.put_end(AttemptId("a", 2))
    frames.put_start(AttemptId("b", 2), start)
    frames.put_deltas([delta("b", 3, epoch=2)])
    frames.put_end(AttemptId("b", 2))
    assert frames.flush(WAIT_S)
    assert [frame for call in gate.calls for frame in call] == [
        Frame("a", 2, 0, None, checkpoint=start),
        Frame("a", 2, 3, None),
        Frame("b", 2, 0, None, checkpoint=start),
        Frame("b", 2, 3, "text 3", (3,)),
        Frame("b", 2, 4, None),
    ]


def test_an_end_without_deltas_and_a_forgotten_attempt_begin_at_one(frames: FrameQueue, gate: Gate) -> None:
    gate.open.set()
    frames.put_end(AttemptId("a", 1))
    frames.put_deltas([delta("b", 1)])
    frames.forget(AttemptId("b", 1))
    frames.put_end(AttemptId("b", 1))
    assert frames.flush(WAIT_S)
    assert [(f.job_id, f.seq) for call in gate.calls for f in call if f.text is None] == [("a", 1), ("b", 1)]


def test_the_breaker_opens_longer_each_time_and_forgets() -> None:
    now = [0.0]
    backoff = ExponentialBackoff(1.0, 3.0, lambda: now[0])
    pauses = []
    for _ in range(4):
        backoff.failed()
        began = now[0]
        while backoff.is_open:
            now[0] += 0.5
        pauses.append(now[0] - began)
    backoff.succeeded()
    backoff.failed()
    now[0] += 1.0
    assert (pauses, backoff.is_open) == ([1.0, 2.0, 3.0, 3.0], False)


def test_redis_gets_the_frames_and_refuses_a_stale_epoch(redis_client: redis.Redis, settings: Settings) -> None:
    publisher = StreamPublisher(redis_client, ttl_s=settings.stream_ttl_s)
    queue = FrameQueue(publisher)
    queue.start()
    queue.put_deltas([delta("job_a", 1, epoch=2), delta("job_a", 2, epoch=2)])
    queue.put_deltas([delta("job_a", 3, epoch=1)])
    queue.put_end(AttemptId("job_a", 2))
    wait_for(lambda: redis_client.xlen(stream_key("job_a")) == 3, "the frames are there")
    queue.stop(WAIT_S)
    ids = [entry_id.decode() for entry_id, _ in redis_client.xrange(stream_key("job_a"))]
    assert ids == ["2-1", "2-2", "2-3"]


def test_a_gate_holds_up_nobody_but_its_own_attempt(frames: FrameQueue, gate: Gate) -> None:
    let_go = threading.Event()

    class Slow:
        def passed(self, frame: Frame) -> Frame | None:
            assert let_go.wait(4 * WAIT_S)
            return frame

    gate.open.set()
    frames.put_filter(AttemptId("guarded", 1), Slow())
    frames.put_deltas([delta("guarded", 1), delta("a", 1)])
    frames.put_end(AttemptId("guarded", 1))
    frames.put_deltas([delta("a", 2)])
    wait_for(lambda: [frame.seq for call in gate.calls for frame in call] == [1, 2])
    let_go.set()
    assert frames.flush(WAIT_S)
    assert [(frame.job_id, frame.seq) for call in gate.calls for frame in call][2:] == [("guarded", 1), ("guarded", 2)]


def test_what_comes_late_of_a_guarded_attempt_is_not_shown_and_of_another_is_no_gap(gate: Gate) -> None:
    gate.open.set()
    gaps: list[float] = []
    queue = FrameQueue(gate, on_gap=lambda _attempt_id, per_token_s: gaps.append(per_token_s))
    queue.start()
    guarded, plain = AttemptId("guarded", 1), AttemptId("a", 1)
    queue.put_filter(guarded, SimpleNamespace(passed=lambda frame: frame))
    for seq in (1, 2, 3):
        queue.put_deltas([delta("guarded", seq), delta("a", seq)])
        if seq == 1:
            queue.forget(guarded)
            queue.forget(plain)
    assert queue.flush(30)
    queue.stop(5)
    shown = [(frame.job_id, frame.seq) for call in gate.calls for frame in call]
    assert (sorted(shown), gaps) == ([("a", 1), ("a", 2), ("a", 3), ("guarded", 1)], [])
