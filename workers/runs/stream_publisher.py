"""Frames on their way from the engine to Redis: a bounded queue, one publisher thread, a breaker.

The engine never waits: when Redis is slow or away, frames are dropped and counted. A dropped frame is a hole that a
reader sees by its sequence number and fills from Postgres when the job has ended; so sequence numbers are never
rewritten here. End frames travel through the same queue, behind the frames of their job.

Deltas of an attempt that has a gate pass it on a second thread, behind which they wait for nobody else's: what a
tenant's policy costs holds up no job without one. They become frames of the gate's own numbers without token ids; an
attempt that had one and is over shows nothing more.

    deltas ──────────────▶ queue ──▶ publisher ──▶ Redis
       └──▶ gated ──▶ gate ──┘
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from models.engine.requests import Delta
from store.streams.checkpoints import Checkpoint
from store.streams.stream_log import Frame
from workers.runs.in_flight import parse_key
from workers.runs.logprobs import kept

log = structlog.get_logger(__name__)

MAX_BATCH = 4096
"""Frames of one script call; a queue that lagged is published in calls of this size."""

_GATED_BATCH = 64
"""Frames that pass their gates before those before them are published."""

_GATES_KEPT = 10_000
"""Of attempts that are over, so that what a stuck engine says of them late is still not shown."""


class Gate(Protocol):
    """What lets frames of one attempt pass: ``workers.runs.output_filter.StreamGate``."""

    def passed(self, frame: Frame) -> Frame | None:
        """Return what is shown in the frame's place, if anything is. Raises nothing."""
        ...


class Publisher(Protocol):
    """What publishes frames: ``store.streams.stream_log.StreamPublisher``."""

    def publish(self, frames: Sequence[Frame]) -> int:
        """Publish all frames by one call and return how many were accepted."""
        ...


class Breaker:
    """Open for a growing while after each failure in a row, so that a dead Redis costs one attempt a while."""

    def __init__(self, first_s: float, longest_s: float, clock: Callable[[], float]) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._clock = clock
        self._pause_s = 0.0
        self._closed_again_at = 0.0

    @property
    def is_open(self) -> bool:
        """True while nothing should be tried."""
        return self._clock() < self._closed_again_at

    def failed(self) -> None:
        """Open, twice as long as the last time."""
        self._pause_s = min(self._longest_s, self._pause_s * 2 or self._first_s)
        self._closed_again_at = self._clock() + self._pause_s

    def succeeded(self) -> None:
        """Forget the failures."""
        self._pause_s = 0.0


class FrameQueue:
    """Takes frames from any thread at no cost and publishes them from its own.

    Whatever came in while a call was under way goes out together in the next one: one call an engine step while
    Redis keeps up, fewer and larger ones when it does not.
    """

    def __init__(
        self, publisher: Publisher, *, max_frames: int = 65_536, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._publisher = publisher
        self._max_frames = max_frames
        self._queue: deque[Frame] = deque()
        self._gated: deque[tuple[Frame, Gate]] = deque()
        self._gates: dict[tuple[str, int], Gate] = {}
        self._past_gates: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._last_seq: dict[tuple[str, int], int] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._busy = False
        self._gating = False
        self._breaker = Breaker(0.25, 5.0, clock)
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
        self._gate_thread = threading.Thread(target=self._run_gates, name="gates", daemon=True)
        self.num_published = 0
        self.num_dropped = 0

    def start(self) -> None:
        """Start the threads."""
        self._thread.start()
        self._gate_thread.start()

    def put_deltas(self, deltas: Sequence[Delta]) -> None:
        """Queue what one engine step made certain; the engine's ``on_deltas``. Never blocks."""
        frames = [_frame(delta) for delta in deltas]
        with self._wake:
            self._last_seq.update(((frame.job_id, frame.epoch), frame.seq) for frame in frames)
            self._put([frame for frame in frames if (frame.job_id, frame.epoch) not in self._past_gates])

    def put_gate(self, job_id: str, epoch: int, gate: Gate) -> None:
        """Let deltas of an attempt pass ``gate`` from now on; before its first one."""
        with self._wake:
            self._gates[job_id, epoch] = gate

    def put_start(self, job_id: str, epoch: int, start: Checkpoint) -> None:
        """Queue where an attempt begins that is not the job's first, before its deltas."""
        with self._wake:
            self._last_seq[job_id, epoch] = start.num_deltas
            self._put([Frame(job_id, epoch, 0, None, checkpoint=start)])

    def put_end(self, job_id: str, epoch: int) -> None:
        """Queue the end frame of an attempt whose outcome is stored, behind its deltas."""
        with self._wake:
            seq = self._last_seq.pop((job_id, epoch), 0) + 1
            self._put([Frame(job_id, epoch, seq, None)])

    def forget(self, job_id: str, epoch: int) -> None:
        """Drop what is known of an attempt that has no end frame, because its outcome is not ours."""
        with self._wake:
            self._last_seq.pop((job_id, epoch), None)
            if self._gates.pop((job_id, epoch), None) is not None:
                self._past_gates[job_id, epoch] = None
                while len(self._past_gates) > _GATES_KEPT:
                    self._past_gates.popitem(last=False)

    def _put(self, frames: Sequence[Frame]) -> None:
        room = max(0, self._max_frames - len(self._queue) - len(self._gated))
        for frame in frames[:room]:
            gate = self._gates.get((frame.job_id, frame.epoch))
            if gate is None:
                self._queue.append(frame)
            else:
                self._gated.append((frame, gate))
        self.num_dropped += max(0, len(frames) - room)
        self._wake.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued so far was published or dropped; False after ``timeout_s``."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._queue and not self._busy and self._is_gate_empty(), timeout_s)

    def _is_gate_empty(self) -> bool:
        return not self._gated and not self._gating

    def stop(self, timeout_s: float) -> None:
        """Publish what is queued and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while batch := self._take():
            self._publish(batch)
            with self._wake:
                self._busy = False
                self._wake.notify_all()

    def _take(self) -> list[Frame]:
        with self._wake:
            self._wake.wait_for(lambda: self._queue or (self._closing and self._is_gate_empty()))
            batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
            self._busy = bool(batch)
            return batch

    def _run_gates(self) -> None:
        while batch := self._take_gated():
            shown = [frame if frame.text is None else gate.passed(frame) for frame, gate in batch]
            with self._wake:
                self._queue.extend(frame for frame in shown if frame is not None)
                self._gating = False
                self._wake.notify_all()

    def _take_gated(self) -> list[tuple[Frame, Gate]]:
        with self._wake:
            self._wake.wait_for(lambda: self._gated or self._closing)
            batch = [self._gated.popleft() for _ in range(min(_GATED_BATCH, len(self._gated)))]
            self._gating = bool(batch)
            return batch

    def _publish(self, batch: list[Frame]) -> None:
        if self._breaker.is_open:
            self.num_dropped += len(batch)
            return
        try:
            self._publisher.publish(batch)
        except Exception as error:  # noqa: BLE001 - whatever Redis says, the frames are lost and the jobs go on
            self.num_dropped += len(batch)
            self._breaker.failed()
            log.warning("frames_dropped", num_frames=len(batch), error=type(error).__name__)
        else:
            self.num_published += len(batch)
            self._breaker.succeeded()


def _frame(delta: Delta) -> Frame:
    job_id, epoch = parse_key(str(delta.request_id))
    logprobs = kept(delta.token_ids, delta.logprobs) if delta.logprobs else ()
    return Frame(job_id, epoch, delta.seq, delta.text, delta.token_ids, logprobs=logprobs)
