"""Fencing: closes the replay log of a lost attempt and recovers what the attempt has emitted.

A worker that was only paused would go on writing. So one call closes the log for older attempts and reads it: the next
attempt continues from the deltas that readers can have seen. The log is described in ``store.streams.stream_log``.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from headrace.store.redis.connection import connect, translated_errors
from headrace.store.seal import PLAIN, Seal
from headrace.store.streams.checkpoints import Checkpoint, ChoiceMark, Lineage, Logprobs
from headrace.store.streams.stream_log import Frame, StreamCursor, read_frame, stream_key

_SCRIPT = Path(__file__).with_suffix(".lua")


class FencedLogs:
    """Fences logs. It opens a connection for each call, because calls are rare and a kept connection might be dead.

    Raises Unavailable if Redis is away or does not answer within ``timeout_s``, CannotOpen for a key that is missing.
    """

    def __init__(self, url: str, *, ttl_s: int, timeout_s: float, seal: Seal = PLAIN) -> None:
        self._seal = seal
        self._url = url
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._script = _SCRIPT.read_text()

    def fence(self, job_id: str, epoch: int) -> list[Frame]:
        """Close the job's log for attempts before ``epoch`` and return their frames."""
        with connect(self._url, timeout_s=self._timeout_s, retries=0) as client, translated_errors(client):
            now_ms, entries = client.eval(
                self._script, 1, stream_key(job_id), str(StreamCursor.before(epoch)), str(self._ttl_s)
            )
        frames = (_frame(job_id, entry_id, fields, int(now_ms), self._seal) for entry_id, fields in entries)
        return [frame for frame in frames if frame.epoch < epoch]


def _frame(job_id: str, entry_id: bytes, flat: list[bytes], now_ms: int, seal: Seal) -> Frame:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    frame = read_frame(job_id, entry_id, fields[b"k"], fields[b"t"], fields.get(b"i", b""), seal=seal)
    return replace(frame, age_s=(now_ms - int(fields[b"a"])) / 1000) if b"a" in fields else frame


def recover(frames: Iterable[Frame], job_age_s: float = 0.0) -> Checkpoint:
    """Return what the attempts have certainly emitted: the frames up to the first missing one.

    Frames of an attempt after a missing one are void, because no attempt can continue from them. ``job_age_s``: the
    time since the job was accepted, when the frames were read.
    """
    recovery = _LogRecovery(job_age_s)
    for frame in frames:
        recovery.take(frame)
    return recovery.checkpoint()


class _LogRecovery:
    """The text up to the last frame before a missing one."""

    def __init__(self, job_age_s: float) -> None:
        self._job_age_s = job_age_s
        self._first_token_s: float | None = None
        self._deltas: list[str] = []
        self._token_ids: list[tuple[int, ...]] = []
        self._logprobs: list[Logprobs] = []
        self._marks: list[ChoiceMark] = []
        self._lineage: Lineage = ()

    def take(self, frame: Frame) -> None:
        """Add the log's next frame, if it continues the text."""
        if frame.checkpoint is not None:
            self._begin(frame.checkpoint)
        elif frame.text is not None and (frame.token_ids or _is_end_of_choice(frame)):
            if frame.seq == 1 and frame.epoch > self._epoch:
                first_token_s = None if frame.age_s is None else max(0.0, self._job_age_s - frame.age_s)
                self._begin(Checkpoint(lineage=((frame.epoch, 0),), first_token_s=first_token_s))
            if frame.epoch == self._epoch and frame.seq == len(self._deltas) + 1:
                self._deltas.append(frame.text)
                self._token_ids.append(frame.token_ids)
                self._logprobs.append(frame.logprobs)
                self._marks += () if frame.mark is None else (frame.mark,)

    def checkpoint(self) -> Checkpoint:
        logprobs = tuple(self._logprobs) if any(self._logprobs) else ()
        deltas, token_ids, marks = tuple(self._deltas), tuple(self._token_ids), tuple(self._marks)
        return Checkpoint(deltas, token_ids, self._lineage, logprobs, marks, self._first_token_s)

    @property
    def _epoch(self) -> int:
        return self._lineage[-1][0] if self._lineage else 0

    def _begin(self, start: Checkpoint) -> None:
        self._deltas, self._token_ids = list(start.deltas), list(start.token_ids)
        self._logprobs = list(start.logprobs or ((),) * start.num_deltas)
        self._marks = list(start.marks)
        self._lineage = start.lineage
        self._first_token_s = start.first_token_s


def _is_end_of_choice(frame: Frame) -> bool:
    return frame.mark is not None and frame.mark.end is not None


def newest(stored: Checkpoint | None, recovered: Checkpoint | None) -> Checkpoint:
    """Return the checkpoint of the later attempt, or the longer one of the same attempt; empty if none."""
    found = [one for one in (stored, recovered) if one is not None and one.deltas]
    return max(found, key=lambda one: (one.epoch, one.num_deltas), default=Checkpoint())
