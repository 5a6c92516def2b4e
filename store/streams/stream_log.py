"""The replay log of a token stream in Redis: its frames, and how they are written.

Every frame is appended to its job's replay log and published on the channel of the same name. The log's entry id is
``<epoch>-<seq>``, so Redis itself refuses a frame of an older attempt and a repeated frame:

    1-1  1-2  1-3  1-4 ╳   2-0 start after 1-4   2-5  2-6  2-7 end

If the seal is on, text and tokens are sealed for their entry (``store.seal``) and the kind is a capital letter.

``store.streams.hub`` reads the log for followers, ``store.streams.fencing`` for the next attempt. A log is capped, and
expires a minute after its job's end: the whole answer is in Postgres by then.
"""

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis

from headrace.store.failpoints import failpoint
from headrace.store.ids import new_id
from headrace.store.redis.connection import AWAY, connect, translated_errors
from headrace.store.seal import PLAIN, Seal
from headrace.store.streams.checkpoints import (
    Checkpoint,
    ChoiceMark,
    Logprobs,
    marked_as_json,
    marked_from_json,
    read_logprobs,
)

CANCEL_CHANNEL = "headrace:cancel"
GENERATION_KEY = "headrace:generation"

ENDED_S = 60
"""A log expires at the latest this long after its job's end."""

HIGHEST_SEQ = 2**64 - 1
"""The highest number that Redis allows in an id."""

# A suffix that makes the seal of the token ids differ from that of the text of the same entry.
_IDS = b"/ids"
_SCRIPT = Path(__file__).with_suffix(".lua")
_RECONNECT_S = 0.5


@dataclass(frozen=True, slots=True, order=True)
class StreamCursor:
    """A position in a job's stream. Frames count from 1 within an epoch (an attempt). Written ``<epoch>-<seq>``.

    ``steps``: of a job of several steps, how many events of its steps came before; written ``<epoch>-<seq>.<steps>``.
    It is no part of comparisons.
    """

    epoch: int = 0
    seq: int = 0
    steps: int = field(default=0, compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``<epoch>-<seq>`` or ``<epoch>-<seq>.<steps>``. Raises ValueError for anything else."""
        place, dot, steps = text.partition(".")
        epoch, dash, seq = place.partition("-")
        # Redis ids have 64 bits; isdecimal and isascii keep out signs, spaces and other scripts' digits.
        is_read = dash and text.isascii() and epoch.isdecimal() and seq.isdecimal() and len(place) <= 39
        if not is_read or (dot and not (steps.isdecimal() and len(steps) <= 9)):
            raise ValueError(f"not a stream position: {text[:40]!r}; it looks like 1-42")
        return cls(int(epoch), int(seq), int(steps or 0))

    @classmethod
    def before(cls, epoch: int) -> Self:
        """Return the last position before ``epoch``."""
        return cls(epoch - 1, HIGHEST_SEQ)

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}" + (f".{self.steps}" if self.steps else "")

    def leads_to(self, frame: "Frame") -> bool:
        """Return whether ``frame`` follows without a gap: the next frame, a newer attempt's first one, or an end.

        An attempt's start carries all deltas before it, so it always follows. An end carries no text; its reader then
        reads the whole answer from Postgres.
        """
        if frame.cursor <= self:
            return False
        if frame.is_end or frame.checkpoint is not None:
            return True
        return frame.seq == (self.seq + 1 if frame.epoch == self.epoch else 1)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt is: ``done`` of ``total``, in a unit of the task. Only Redis has it, the newest one.

    ``preview``: a data URL that shows the result so far.
    """

    done: float
    total: float
    message: str = ""
    preview: str | None = None

    def as_list(self) -> list[float | str]:
        """Return the values, without a preview that it has not."""
        return [self.done, self.total, self.message, *([] if self.preview is None else [self.preview])]


@dataclass(frozen=True, slots=True)
class Frame:
    """A piece of a job's answer.

    A delta has ``text`` and its ``token_ids``, ``logprobs`` if the job asks for them, and a ``mark`` if the job has
    several choices (``store.streams.checkpoints``). Deltas count from 1, through
    all attempts that continue one another. An attempt's start has a ``checkpoint`` and ``seq`` 0: the deltas that it
    continues and their attempts, itself the last. One with ``progress`` is in no log and has no position. Any other is
    the end of the stream: the outcome is in Postgres. Its ``seq`` is one above the last delta's.

    ``age_s`` is known of a job's first delta that ``store.streams.fencing`` has read: since it was published.
    """

    job_id: str
    epoch: int
    seq: int
    text: str | None
    token_ids: tuple[int, ...] = ()
    checkpoint: Checkpoint | None = None
    logprobs: Logprobs = ()
    mark: ChoiceMark | None = None
    age_s: float | None = field(default=None, compare=False)
    progress: Progress | None = None

    @property
    def entry_id(self) -> str:
        """The frame's id in the log."""
        return f"{self.epoch}-{self.seq}"

    @property
    def cursor(self) -> StreamCursor:
        """The position just after this frame."""
        if self.progress is not None:
            return StreamCursor()
        return StreamCursor(self.epoch, self.seq if self.checkpoint is None else self.checkpoint.num_deltas)

    @property
    def is_end(self) -> bool:
        """True for the last frame of a stream."""
        return self.text is None and self.checkpoint is None and self.progress is None

    def as_args(self) -> tuple[str, str, str, str]:
        """Return id, kind, text and tokens as they are stored."""
        if self.checkpoint is not None:
            return self.entry_id, "s", json.dumps(self.checkpoint.as_json(), separators=(",", ":")), ""
        if self.progress is not None:
            one = self.progress
            return self.entry_id, "g", json.dumps(one.as_list(), separators=(",", ":")), ""
        if self.text is None:
            return self.entry_id, "e", "", ""
        tokens = ",".join(map(str, self.token_ids))
        if self.logprobs or self.mark is not None:
            # Inside the text, because readers receive only the text; the token ids are only in the log.
            text = self.text if self.mark is None else marked_as_json(self.text, self.mark)
            inside = [text, [one.as_json() for one in self.logprobs]]
            return self.entry_id, "p", json.dumps(inside, separators=(",", ":")), tokens
        return self.entry_id, "d", self.text, tokens


def _sealed(frame: Frame, seal: Seal) -> tuple[str, str, str | bytes, str | bytes]:
    """Return id, kind, text and tokens as they are stored, sealed if the seal is on."""
    entry_id, kind, text, tokens = frame.as_args()
    if not seal.is_on:
        return entry_id, kind, text, tokens
    where = entry_id.encode()
    return (
        entry_id,
        kind.upper(),
        seal.seal_frame(text.encode(), frame.job_id, where) if text else text,
        seal.seal_frame(tokens.encode(), frame.job_id, where + _IDS) if tokens else tokens,
    )


def read_frame(
    job_id: str, entry_id: bytes, kind: bytes, text: bytes, tokens: bytes = b"", *, seal: Seal = PLAIN
) -> Frame:
    """Return the frame of a log entry or a message. Raises CannotOpen if it does not open."""
    if kind.isupper():
        kind = kind.lower()
        text = seal.open_frame(text, job_id, entry_id) if text else text
        tokens = seal.open_frame(tokens, job_id, entry_id + _IDS) if tokens else tokens
    cursor = StreamCursor.parse(entry_id.decode())
    match kind:
        case b"s":
            return Frame(job_id, cursor.epoch, 0, None, checkpoint=Checkpoint.from_json(json.loads(text)))
        case b"e":
            return Frame(job_id, cursor.epoch, cursor.seq, None)
        case b"g":
            return Frame(job_id, cursor.epoch, 0, None, progress=Progress(*json.loads(text)))
        case b"p":
            delta, rows = json.loads(text)
            shown, mark = (delta, None) if isinstance(delta, str) else marked_from_json(delta)
            logprobs = read_logprobs(rows)
            return Frame(job_id, cursor.epoch, cursor.seq, shown, _ids(tokens), logprobs=logprobs, mark=mark)
        case _:
            return Frame(job_id, cursor.epoch, cursor.seq, text.decode(), _ids(tokens))


def _ids(tokens: bytes) -> tuple[int, ...]:
    return tuple(map(int, tokens.split(b","))) if tokens else ()


def stream_key(job_id: str) -> str:
    """Return the name of a job's replay log, which is also its channel."""
    return f"headrace:stream:{job_id}"


MOST_FRAMES = 16_384
"""Frames that are kept of one stream: the deltas of the longest usual answers."""


class StreamPublisher:
    """Writes frames, all jobs of an engine step in one script call. Raises Unavailable if Redis is away."""

    def __init__(self, client: redis.Redis, *, ttl_s: int, maxlen: int = MOST_FRAMES, seal: Seal = PLAIN) -> None:
        self._seal = seal
        self._client = client
        self._script = client.register_script(_SCRIPT.read_text())
        self._maxlen = maxlen
        self._ttl_s = ttl_s
        self._ended_s = min(ttl_s, ENDED_S)

    def publish(self, frames: Sequence[Frame]) -> int:
        """Append and publish the frames in order; return how many were accepted. Stale and repeated ones are not."""
        if not frames:
            return 0
        args: list[str | bytes | int] = [self._maxlen, self._ttl_s, self._ended_s]
        for frame in frames:
            args += _sealed(frame, self._seal)
        with translated_errors(self._client):
            accepted = int(self._script(keys=[stream_key(frame.job_id) for frame in frames], args=args))
        failpoint("stream.published")
        return accepted

    def wake(self, job_ids: Iterable[str]) -> None:
        """Wake these jobs' followers without a frame, so that they read Postgres now. Raises Unavailable."""
        with translated_errors(self._client), self._client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.publish(stream_key(job_id), "")
            pipe.execute()

    def nudge(self, job_ids: Iterable[str]) -> None:
        """Wake these jobs' followers without a frame, so that they read Postgres now.

        For jobs that ended without an engine: cancelled while queued, expired, or failed by a sweep. Their logs expire
        soon after.
        """
        with translated_errors(self._client), self._client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.publish(stream_key(job_id), "")
                pipe.expire(stream_key(job_id), self._ended_s)
            pipe.execute()


def read_progress(client: redis.Redis, job_id: str, epoch: int, seal: Seal = PLAIN) -> Progress | None:
    """Return how far the attempt of this epoch is; None if it has told nothing. Raises Unavailable, CannotOpen."""
    with translated_errors(client):
        stored: Any = client.get(f"{stream_key(job_id)}:progress")
    if stored is None:
        return None
    entry_id, _, rest = stored.partition(b" ")
    frame = read_frame(job_id, entry_id, rest[:1], rest[1:], seal=seal)
    return frame.progress if frame.epoch == epoch else None


def forget(client: redis.Redis, job_ids: Iterable[str]) -> None:
    """Remove these jobs' replay logs before they expire."""
    keys = [name for job_id in job_ids for name in (stream_key(job_id), f"{stream_key(job_id)}:progress")]
    if keys:
        with translated_errors(client):
            client.unlink(*keys)


def start_generation(client: redis.Redis) -> bool:
    """Return True if Redis is new or was wiped since the last call: it has lost every hint.

    Raises Unavailable if Redis is away.
    """
    with translated_errors(client):
        return bool(client.set(GENERATION_KEY, new_id("gen"), nx=True))


def forget_generation(client: redis.Redis) -> None:
    """Make the next ``start_generation`` return True again, because the caller failed to restore the hints."""
    with translated_errors(client):
        client.delete(GENERATION_KEY)


def publish_cancel(client: redis.Redis, job_id: str) -> None:
    """Notify every worker of a job's cancel request. A lost message costs only the time to the next lease renewal."""
    with translated_errors(client):
        client.publish(CANCEL_CHANNEL, job_id)


class CancelListener:
    """A thread that calls ``on_cancel(job_id)`` for each published cancel. It reconnects after an outage of Redis."""

    def __init__(self, url: str, on_cancel: Callable[[str], None]) -> None:
        self._client = connect(url, timeout_s=None)
        self._on_cancel = on_cancel
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancel-listener", daemon=True)
        self.subscribed = threading.Event()

    def start(self) -> None:
        """Subscribe; ``subscribed`` is set once Redis has confirmed it."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread within about a second and drop its connection."""
        self._stopping.set()
        self._thread.join(timeout=5)
        self._client.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except AWAY:
                self.subscribed.clear()
                self._stopping.wait(_RECONNECT_S)

    def _listen(self) -> None:
        subscription: Any = self._client.pubsub  # not annotated by redis-py
        with subscription() as pubsub:
            pubsub.subscribe(CANCEL_CHANNEL)
            while not self._stopping.is_set():
                message = pubsub.get_message(timeout=1.0)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    self.subscribed.set()
                elif message["type"] == "message":
                    # Any client may publish anything: bytes that are no text are the id of no job here.
                    self._on_cancel(message["data"].decode(errors="replace"))
