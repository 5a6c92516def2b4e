"""Taking over the log of an attempt that was lost: what it has emitted, and nothing more from now on.

A worker that was only paused would go on writing. So its log is sealed first, and read in the same call: what the next
attempt goes on from is what readers can have seen. Knows the log's frames and no tables; see ``streams`` for the log.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from store.encryption.vault import Vault
from store.payloads.logprobs import Logprobs
from store.redis.connection import connect, told_plainly
from store.streams.checkpoints import Checkpoint, Lineage
from store.streams.stream_log import Cursor, Frame, read_frame, stream_key

_SCRIPT = Path(__file__).with_suffix(".lua")


class SealedLogs:
    """Seals logs, over a connection of its own for each: that is rare, and a kept one might be dead.

    Raises Unavailable if Redis is away or does not answer within ``timeout_s``, CannotOpen for a key that is missing.
    """

    def __init__(self, url: str, *, ttl_s: int, timeout_s: float, vault: Vault | None = None) -> None:
        self._vault = vault or Vault()
        self._url = url
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._script = _SCRIPT.read_text()

    def seal(self, job_id: str, epoch: int) -> list[Frame]:
        """Let no attempt before ``epoch`` append to the job's log any more, and return what they have."""
        with connect(self._url, timeout_s=self._timeout_s, retries=0) as client, told_plainly(client):
            entries: Any = client.eval(self._script, 1, stream_key(job_id), str(Cursor.before(epoch)), str(self._ttl_s))
        frames = (_frame(job_id, entry_id, fields, self._vault) for entry_id, fields in entries)
        return [frame for frame in frames if frame.epoch < epoch]


def _frame(job_id: str, entry_id: bytes, flat: list[bytes], vault: Vault) -> Frame:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return read_frame(job_id, entry_id, fields[b"k"], fields[b"t"], fields.get(b"i", b""), vault=vault)


def recover(frames: Iterable[Frame]) -> Checkpoint:
    """Return what is certain to be emitted by the attempts that wrote these frames, as far as no frame is missing.

    What an attempt emitted after a hole is void: nobody can go on from it.
    """
    known = _Known()
    for frame in frames:
        known.take(frame)
    return known.checkpoint()


class _Known:
    """The text up to the last frame that followed without a hole."""

    def __init__(self) -> None:
        self._deltas: list[str] = []
        self._token_ids: list[tuple[int, ...]] = []
        self._logprobs: list[Logprobs] = []
        self._lineage: Lineage = ()

    def take(self, frame: Frame) -> None:
        """Take in the log's next frame, if it leads on."""
        if frame.checkpoint is not None:
            self._begin(frame.checkpoint)
        elif frame.text is not None and frame.token_ids:
            if frame.seq == 1 and frame.epoch > self._epoch:
                self._begin(Checkpoint(lineage=((frame.epoch, 0),)))
            if frame.epoch == self._epoch and frame.seq == len(self._deltas) + 1:
                self._deltas.append(frame.text)
                self._token_ids.append(frame.token_ids)
                self._logprobs.append(frame.logprobs)

    def checkpoint(self) -> Checkpoint:
        logprobs = tuple(self._logprobs) if any(self._logprobs) else ()
        return Checkpoint(tuple(self._deltas), tuple(self._token_ids), self._lineage, logprobs)

    @property
    def _epoch(self) -> int:
        return self._lineage[-1][0] if self._lineage else 0

    def _begin(self, start: Checkpoint) -> None:
        self._deltas, self._token_ids = list(start.deltas), list(start.token_ids)
        self._logprobs = list(start.logprobs or ((),) * start.num_deltas)
        self._lineage = start.lineage


def newest(stored: Checkpoint | None, recovered: Checkpoint | None) -> Checkpoint:
    """Return the one that is of the later attempt, or longer if both are of one; an empty one if there is none."""
    found = [one for one in (stored, recovered) if one is not None and one.deltas]
    return max(found, key=lambda one: (one.epoch, one.num_deltas), default=Checkpoint())
