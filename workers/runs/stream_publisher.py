"""Publishes the engine's deltas to Redis as frames: a bounded queue, one publisher thread, exponential backoff.

The engine never waits: when Redis is slow or away, frames are dropped and counted. A reader sees a dropped frame as a
gap in the sequence numbers, and gets the text from Postgres when the job has ended; so sequence numbers are never
rewritten here. End frames go through the same queue, behind the frames of their job.

Deltas of an attempt with an output filter pass it on a second thread, so that the cost of a tenant's policy delays no
job without one. They get the filter's sequence numbers and no token ids. After such an attempt is over, late deltas of
it are not shown.

The choices of an attempt (``ChoiceStream``) are numbered together, in the order in which their deltas come.

    deltas ──────────────────▶ queue ──▶ publisher ──▶ Redis
       └──▶ filtered ──▶ filter ──┘
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog
from cachetools import FIFOCache

from headrace.models.engine.requests import Delta
from headrace.store.streams.checkpoints import Checkpoint, ChoiceEnd, ChoiceMark
from headrace.store.streams.stream_log import Frame, Progress
from headrace.workers.runs.choice_stream import ChoiceStream
from headrace.workers.runs.in_flight import AttemptId, ChoiceId
from headrace.workers.runs.logprobs import kept

log = structlog.get_logger(__name__)

MAX_BATCH = 4096
"""Frames of one script call."""

_FILTER_BATCH = 64
"""Frames that are filtered before they are put into the queue together."""

_ENDED_KEPT = 10_000
"""Attempts that are over and remembered, and as many filtered ones. Late deltas from a stuck engine make no state for
them again, and those of filtered attempts are not shown."""


class FrameFilter(Protocol):
    """Filters the frames of one attempt: ``workers.runs.output_guard.OutputGuard``."""

    def passed(self, frame: Frame) -> Frame | None:
        """Return the frame that is shown instead, or None. Raises nothing."""
        ...


class Publisher(Protocol):
    """Publishes frames: ``store.streams.stream_log.StreamPublisher``."""

    def publish(self, frames: Sequence[Frame]) -> int:
        """Publish all frames in one call and return how many were accepted."""
        ...


class ExponentialBackoff:
    """Open for a pause that doubles with each failure in a row, so that a dead Redis costs one attempt per pause."""

    def __init__(self, first_s: float, longest_s: float, clock: Callable[[], float]) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._clock = clock
        self._pause_s = 0.0
        self._closed_again_at = 0.0

    @property
    def is_open(self) -> bool:
        """True while no call should be made."""
        return self._clock() < self._closed_again_at

    def failed(self) -> None:
        """Open for twice the last pause."""
        self._pause_s = min(self._longest_s, self._pause_s * 2 or self._first_s)
        self._closed_again_at = self._clock() + self._pause_s

    def succeeded(self) -> None:
        """Forget the failures."""
        self._pause_s = 0.0


class FrameQueue:
    """Takes frames from any thread without blocking, and publishes them from its own.

    Frames that come during a call are published together in the next one: one call for each engine step while Redis
    keeps up, fewer and larger calls when it does not. ``on_gap`` gets the time between two pieces of a stream,
    divided by the tokens of the later one.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        max_frames: int = 65_536,
        on_gap: Callable[[AttemptId, float], None] = lambda _attempt_id, _per_token_s: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publisher = publisher
        self._max_frames = max_frames
        self._on_gap = on_gap
        self._clock = clock
        self._queue: deque[Frame] = deque()
        self._unfiltered: deque[tuple[Frame, FrameFilter]] = deque()
        self._filters: dict[AttemptId, FrameFilter] = {}
        self._choices: dict[AttemptId, ChoiceStream] = {}
        self._ended: FIFOCache[AttemptId, None] = FIFOCache(_ENDED_KEPT)  # filtered attempts that are over
        self._over: FIFOCache[AttemptId, None] = FIFOCache(_ENDED_KEPT)  # attempts of which nothing is kept any more
        self._last_seq: dict[AttemptId, int] = {}
        self._last_at: dict[AttemptId, float] = {}
        self._progress: dict[AttemptId, float] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._busy = False
        self._is_filtering = False
        self._backoff = ExponentialBackoff(0.25, 5.0, clock)
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
        self._filter_thread = threading.Thread(target=self._run_filters, name="filters", daemon=True)
        self.num_published = 0
        self.num_dropped = 0

    def start(self) -> None:
        """Start the threads."""
        self._thread.start()
        self._filter_thread.start()

    def put_deltas(self, deltas: Sequence[Delta]) -> None:
        """Queue the new texts of one engine step; the engine's ``on_deltas``. Never blocks.

        The request ids are AttemptIds and ChoiceIds.
        """
        self._show([_frame(delta) for delta in deltas])

    def put_choice_end(self, choice_id: ChoiceId, end: ChoiceEnd) -> None:
        """Queue the end of a choice behind its deltas."""
        mark = ChoiceMark(choice_id.choice, end)
        self._show([(choice_id.attempt_id, Frame(*choice_id.attempt_id, 0, "", mark=mark))])

    def _show(self, found: Sequence[tuple[AttemptId, Frame]]) -> None:
        with self._wake:
            frames = list(self._numbered(found))
            current = [one for one in frames if one[0] not in self._over]
            self._last_seq.update((attempt_id, frame.seq) for attempt_id, frame in current)
            self._put([(attempt_id, frame) for attempt_id, frame in frames if attempt_id not in self._ended])
            gaps = self._gaps(current)
        for attempt_id, per_token_s in gaps:
            self._on_gap(attempt_id, per_token_s)

    def _gaps(self, frames: Sequence[tuple[AttemptId, Frame]]) -> list[tuple[AttemptId, float]]:
        """Return the time since the last piece of each stream, for each token of the new piece.

        The choices of an attempt are several streams in one: they are left out.
        """
        now = self._clock()
        gaps = []
        for attempt_id, frame in frames:
            if frame.mark is not None:
                continue
            if (last_at := self._last_at.get(attempt_id)) is not None:
                gaps.append((attempt_id, (now - last_at) / max(1, len(frame.token_ids))))
            self._last_at[attempt_id] = now
        return gaps

    def _numbered(self, found: Iterable[tuple[AttemptId, Frame]]) -> Iterable[tuple[AttemptId, Frame]]:
        """Number the frames of choices. Those of an attempt that is over are left out."""
        for attempt_id, frame in found:
            if frame.mark is None:
                yield attempt_id, frame
            elif (choices := self._choices.get(attempt_id)) is not None:
                yield attempt_id, choices.take(frame)

    def put_choices(self, attempt_id: AttemptId, choices: ChoiceStream) -> None:
        """Number the deltas of an attempt's choices together; called before the first one."""
        with self._wake:
            self._choices[attempt_id] = choices

    def put_filter(self, attempt_id: AttemptId, frame_filter: FrameFilter) -> None:
        """Filter the deltas of an attempt; called before its first one."""
        with self._wake:
            self._filters[attempt_id] = frame_filter

    def put_start(self, attempt_id: AttemptId, start: Checkpoint) -> None:
        """Queue the start of an attempt after the job's first, before its deltas."""
        with self._wake:
            self._last_seq[attempt_id] = start.num_deltas
            self._put([(attempt_id, Frame(*attempt_id, 0, None, checkpoint=start))])

    def put_progress(self, attempt_id: AttemptId, progress: Progress) -> None:
        """Queue how far an attempt is, unless it is over."""
        with self._wake:
            if attempt_id not in self._over:
                self._progress[attempt_id] = min(max(progress.done / progress.total, 0), 1) if progress.total > 0 else 0
                self._put([(attempt_id, Frame(*attempt_id, 0, None, progress=progress))])

    def progress_of(self, attempt_id: AttemptId) -> float | None:
        """Return how far an attempt is, from 0 to 1; None if it has told nothing."""
        return self._progress.get(attempt_id)

    def put_end(self, attempt_id: AttemptId) -> None:
        """Queue the end frame of an attempt behind its deltas, after its outcome was stored."""
        with self._wake:
            seq = self._last_seq.pop(attempt_id, 0) + 1
            self._last_at.pop(attempt_id, None)
            self._put([(attempt_id, Frame(*attempt_id, seq, None))])

    def forget(self, attempt_id: AttemptId) -> None:
        """Drop the state of an attempt that is over, with or without an end frame."""
        with self._wake:
            self._last_seq.pop(attempt_id, None)
            self._last_at.pop(attempt_id, None)
            self._choices.pop(attempt_id, None)
            self._progress.pop(attempt_id, None)
            self._over[attempt_id] = None
            if self._filters.pop(attempt_id, None) is not None:
                self._ended[attempt_id] = None

    def _put(self, frames: Sequence[tuple[AttemptId, Frame]]) -> None:
        room = max(0, self._max_frames - len(self._queue) - len(self._unfiltered))
        for attempt_id, frame in frames[:room]:
            frame_filter = self._filters.get(attempt_id)
            if frame_filter is None:
                self._queue.append(frame)
            else:
                self._unfiltered.append((frame, frame_filter))
        self.num_dropped += max(0, len(frames) - room)
        self._wake.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all queued frames were published or dropped; False after ``timeout_s``."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._queue and not self._busy and self._is_filter_idle(), timeout_s)

    def _is_filter_idle(self) -> bool:
        return not self._unfiltered and not self._is_filtering

    def stop(self, timeout_s: float) -> None:
        """Publish the queued frames and end the threads."""
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
            self._wake.wait_for(lambda: self._queue or (self._closing and self._is_filter_idle()))
            batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
            self._busy = bool(batch)
            return batch

    def _run_filters(self) -> None:
        while batch := self._take_unfiltered():
            shown = [frame if frame.text is None else one.passed(frame) for frame, one in batch]
            with self._wake:
                self._queue.extend(frame for frame in shown if frame is not None)
                self._is_filtering = False
                self._wake.notify_all()

    def _take_unfiltered(self) -> list[tuple[Frame, FrameFilter]]:
        with self._wake:
            self._wake.wait_for(lambda: self._unfiltered or self._closing)
            batch = [self._unfiltered.popleft() for _ in range(min(_FILTER_BATCH, len(self._unfiltered)))]
            self._is_filtering = bool(batch)
            return batch

    def _publish(self, batch: list[Frame]) -> None:
        if self._backoff.is_open:
            self.num_dropped += len(batch)
            return
        try:
            self._publisher.publish(batch)
        except Exception as error:  # noqa: BLE001 - on any error the frames are lost and the jobs go on
            self.num_dropped += len(batch)
            self._backoff.failed()
            log.warning("frames_dropped", num_frames=len(batch), error=type(error).__name__)
        else:
            self.num_published += len(batch)
            self._backoff.succeeded()


def _frame(delta: Delta) -> tuple[AttemptId, Frame]:
    logprobs = kept(delta.token_ids, delta.logprobs) if delta.logprobs else ()
    match delta.request_id:
        case AttemptId() as attempt_id:
            mark = None
        case ChoiceId(choice=choice) as choice_id:
            attempt_id, mark = choice_id.attempt_id, ChoiceMark(choice)
        case other:
            raise TypeError(f"not an attempt's id: {other!r}")
    return attempt_id, Frame(*attempt_id, delta.seq, delta.text, delta.token_ids, logprobs=logprobs, mark=mark)
