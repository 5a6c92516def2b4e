"""A worker controlled step by step by the test: it claims, streams and ends jobs through the store, like a real one.

``claim``, ``say``, ``succeed`` and others are single steps; ``serve`` answers every job with a function of its payload,
for tests that only need answers.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import redis

from headrace.features.flows.store.added import Added
from headrace.models.engine.requests import FinishReason
from headrace.prompts.detokenizer import spell
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Claim, Finish, Release, claim, finish, release, still_open, still_running
from headrace.store.jobs.job_rows import EndRows
from headrace.store.scheduling import dispatch_queries
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import Checkpoint, Lineage, LogprobRow, Logprobs
from headrace.store.streams.stream_log import Frame, Progress, StreamPublisher
from headrace.store.tasks.generate import GeneratePayload
from headrace.workers.runs.outcome import answer

Answer = Callable[[dict[str, Any]], Sequence[str] | dict[str, Any]]
"""Returns the deltas of a job, or its whole output, for its payload."""


@dataclass
class Attempt:
    """A claimed job, its text so far, and the attempts of this text."""

    claim: Claim
    said: list[str] = field(default_factory=list)
    lineage: Lineage = ()

    def likely(self, texts: Sequence[str]) -> list[Logprobs]:
        """Logprobs of one token a byte for each text, if the job asks."""
        count = self.claim.payload.get("sampling", {}).get("logprobs")
        if count is None:
            return [() for _ in texts]
        return [
            tuple(LogprobRow(byte, -0.25, ((byte, -0.25), (256, -1.5))[:count]) for byte in text.encode())
            for text in texts
        ]


def _read(claimed: Claim, text: str, finish_reason: str) -> dict[str, Any]:
    """The output as a real worker reads it in the text."""
    payload = GeneratePayload.model_validate(claimed.payload)
    return answer(payload, claimed.job_id, text, FinishReason(finish_reason)).model_dump(exclude_none=True)


class ScriptedWorker:
    """One worker on one queue."""

    def __init__(self, db: Database, client: redis.Redis, queue: str) -> None:
        self._db = db
        self._queue = queue
        self._frames = StreamPublisher(client, maxlen=1000, ttl_s=60, seal=db.seal)
        self.cached_tokens = 0

    def claim(self, job_id: str) -> Attempt:
        """Take the job, which must be free."""
        while not (found := claim(self._db, "scripted", self._queue, [job_id], lease_s=30)):
            assert still_open(self._db, self._queue, [job_id])
            self._wait_for_the_row()
        return Attempt(found[job_id])

    def go_on(self, earlier: Attempt, num_kept: int, *, announce: bool = True) -> Attempt:
        """Take a free job again and keep the first deltas of an earlier attempt; a start frame notifies the readers."""
        attempt = self.claim(earlier.claim.job_id)
        kept = earlier.said[:num_kept]
        tokens = tuple((number,) for number in range(num_kept))
        lineage = earlier.lineage or ((earlier.claim.epoch, 0),)
        logprobs = tuple(attempt.likely(kept))
        start = Checkpoint(tuple(kept), tokens, lineage, logprobs).continued_by(attempt.claim.epoch)
        attempt.said, attempt.lineage = kept, start.lineage
        if announce:
            self._frames.publish([Frame(attempt.claim.job_id, attempt.claim.epoch, 0, None, checkpoint=start)])
        return attempt

    def say(self, attempt: Attempt, *texts: str) -> None:
        """Publish the next deltas."""
        first = len(attempt.said) + 1
        attempt.said += texts
        held = attempt.claim
        frames = [
            Frame(held.job_id, held.epoch, seq, text, logprobs=logprobs)
            for seq, (text, logprobs) in enumerate(zip(texts, attempt.likely(texts), strict=True), first)
        ]
        self._frames.publish(frames)

    def whisper(self, attempt: Attempt, *texts: str) -> None:
        """Produce deltas that Redis never gets."""
        attempt.said += texts

    def succeed(
        self,
        attempt: Attempt,
        finish_reason: str = "stop",
        *,
        announce: bool = True,
        stop_text: str | None = None,
        added: Added | None = None,
    ) -> None:
        """End the job with the text so far."""
        output: dict[str, Any] = {"text": "".join(attempt.said), "finish_reason": finish_reason}
        if {"tool_style", "reasoning"} & attempt.claim.payload.keys():
            output = _read(attempt.claim, output["text"], finish_reason)
        if attempt.claim.payload.get("sampling", {}).get("logprobs") is not None:
            spelled = spell(ByteTokenizer(), chain.from_iterable(attempt.likely(attempt.said)))
            output["logprobs"] = [entry.model_dump() for entry in spelled]
        if stop_text is not None:
            output["stop_text"] = stop_text
        self._end(attempt, JobState.SUCCEEDED, output, None, announce=announce, added=added)

    def answer(self, attempt: Attempt, output: dict[str, Any], stored: EndRows | None = None) -> None:
        """End the job with this output, and with rows in the same transaction."""
        self._end(attempt, JobState.SUCCEEDED, output, None, stored=stored)

    def tell(self, attempt: Attempt, progress: Progress) -> None:
        """Publish how far the job is."""
        self._frames.publish([Frame(attempt.claim.job_id, attempt.claim.epoch, 0, None, progress=progress)])

    def fail(self, attempt: Attempt, code: str, message: str) -> None:
        """End the job with an error."""
        error = {"code": code, "message": message, "retryable": False, "attempt": attempt.claim.attempt}
        self._end(attempt, JobState.FAILED, None, error)

    def obey_cancel(self, attempt: Attempt) -> None:
        """End the job as its owner asked, with the text so far."""
        output = {"text": "".join(attempt.said), "finish_reason": "cancelled"}
        self._end(attempt, JobState.CANCELLED, output, {"code": "cancelled", "message": "cancelled by its owner"})

    def expire(self, attempt: Attempt) -> None:
        """End the job at its deadline."""
        self._end(attempt, JobState.EXPIRED, None, {"code": "deadline_exceeded", "message": "out of time"})

    def nudge(self, job_id: str) -> None:
        """Let the job's readers look into Postgres."""
        self._frames.nudge([job_id])

    def hand_back(self, attempt: Attempt, *, charge: bool = False) -> None:
        """Give the job back unfinished, as a drain (uncharged) or a failed step (charged) does."""
        held = attempt.claim
        while not release(
            self._db, [Release(held.job_id, held.epoch, charge=charge, parent_id=held.parent_id)]
        ) and still_running(self._db, {held.job_id: held.epoch}):
            self._wait_for_the_row()

    def _wait_for_the_row(self) -> None:
        """Wait as ``workers.runs.claim_client`` does: a request that joins the job has locked its row until it is
        committed."""
        time.sleep(0.01)

    def _end(
        self,
        attempt: Attempt,
        state: JobState,
        output: dict[str, Any] | None,
        error: dict[str, Any] | None,
        *,
        announce: bool = True,
        added: Added | None = None,
        stored: EndRows | None = None,
    ) -> None:
        held = attempt.claim
        usage = {
            "input_tokens": held.input_tokens,
            "output_tokens": len(attempt.said),
            "cached_tokens": self.cached_tokens,
            "queue_ms": 1.0,
            "first_token_ms": 2.0,
            "attempt_first_token_ms": 1.5,
            "compute_ms": 3.0,
        }
        outcome = Finish(held.job_id, held.epoch, state, output, error, usage, attempt.said, attempt.lineage)
        logprobs = tuple(attempt.likely(attempt.said))
        outcome = replace(
            outcome,
            logprobs=logprobs,
            tenant_id=held.tenant_id,
            is_source=held.is_source,
            parent_id=held.parent_id,
            added=added,
            stored=stored,
        )
        while not (ended := finish(self._db, [outcome])) and still_running(self._db, {held.job_id: held.epoch}):
            self._wait_for_the_row()
        assert ended == {held.job_id}
        if announce:
            self._frames.publish([Frame(held.job_id, held.epoch, len(attempt.said) + 1, None)])

    @contextmanager
    def serve(self, answer: Answer) -> Iterator[None]:
        """Answer every job of the queue with what ``answer`` makes of its payload."""
        stop = threading.Event()
        thread = threading.Thread(target=self._serve, args=(answer, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=60)

    def _serve(self, answer: Answer, stop: threading.Event) -> None:
        while not stop.wait(0.01):
            waiting = dispatch_queries.take_waiting(self._db, self._queue, 32)
            announced = dispatch_queries.take_stale(self._db, self._queue, 0.0, 32)
            claimed = claim(self._db, "scripted", self._queue, [*waiting, *announced], lease_s=30)
            for held in claimed.values():
                attempt = Attempt(held)
                made = answer(held.payload)
                if isinstance(made, dict):
                    self.answer(attempt, made)
                else:
                    self.say(attempt, *made)
                    self.succeed(attempt)
