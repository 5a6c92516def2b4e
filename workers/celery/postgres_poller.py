"""Polls Postgres for jobs that come without a message: crash suspects, and all jobs while Redis is silent.

Once a second it asks Postgres for waiting jobs. A crash suspect (a job that ran when its worker died) is never
announced. It runs in isolation, when no other job is in this process, so that a second crash harms no other job. Other
jobs are claimed from Postgres while they wait, the engine has room, and no message comes.

    look ──suspects──▶ a gap, or the engine is reserved ──▶ run suspects one by one, in isolation ──▶ release
      └──others──▶ still waiting and no message for ``after_s`` ──▶ claim as many as there is room for

If all workers are busy, the one with the fewest jobs closes (``store.scheduling.dispatch_queries.closing``) and the
others continue. After a while the jobs that still run there are handed on to other workers, so that neither the suspect
nor a blocked message waits for the longest job.
"""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

import structlog

from headrace.store.periodic import Periodic
from headrace.store.scheduling.dispatch_queries import Closer
from headrace.workers.runs.claim_client import ClaimClient
from headrace.workers.runs.engine_admission import EngineAdmission, Ticket
from headrace.workers.runs.in_flight import Attempt

log = structlog.get_logger(__name__)

LOOK_S = 1.0
"""Time between two polls while no job is found."""

BUSY_S = 0.05
"""Time between two polls while Redis is silent and jobs wait: the engine must not become idle."""

MOST_CLAIMED = 64

MOST_SHUT = 2
"""A worker is closed for this multiple of ``patience_s``; then its running jobs are handed on. It bounds how long a
suspect waits where the jobs of all workers are long."""

PASS = 3
"""Suspects run alone for this multiple of ``patience_s``; then other jobs have their turn."""

_MOST_PASSES = 3  # how often a worker leaves the closing to a less loaded one


class AttemptRunner(Protocol):
    """Runs a claimed attempt: ``workers.runs.job_runner.JobRunner``."""

    def run_claimed(self, attempt: Attempt) -> object:
        """Run it to its outcome on the calling thread; raises nothing."""
        ...


class SilenceDetector:
    """Detects that no message came for ``after_s`` although a job waited and there was room for it."""

    def __init__(self, after_s: float, clock: Callable[[], float]) -> None:
        self._after_s = after_s
        self._clock = clock
        self._num_messages = 0
        self._began_at: float | None = None
        self.is_long = False

    def count(self, num_messages: int) -> None:
        """Note how many messages have come so far: a new one ends the silence."""
        if num_messages != self._num_messages:
            self._num_messages, self._began_at, self.is_long = num_messages, None, False

    def look(self, *, waits: bool) -> bool:
        """Note whether a job waits that there is room for. Return True if one has waited for long without a message.

        The silence stays long when no job waits any more, so that the next job is claimed at once.
        """
        if not waits:
            self._began_at = None
        elif self._began_at is None:
            self._began_at = self._clock()
        elif not self.is_long and self._clock() - self._began_at >= self._after_s:
            self.is_long = True
            log.warning("redis_is_silent", waited_s=self._after_s)
        return self.is_long


class PostgresPoller(Periodic):
    """A thread that claims from Postgres; the settings ``suspect_patience_s`` and ``direct_after_s`` are its times.

    ``hand_on`` gives the jobs in the engine back to the queue with their output so far, for other workers to continue.
    """

    def __init__(
        self,
        claim_client: ClaimClient,
        admission: EngineAdmission,
        runner: AttemptRunner,
        *,
        hand_on: Callable[[], None],
        after_s: float,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._claim_client = claim_client
        self._admission = admission
        self._runner = runner
        self._hand_on = hand_on
        self._num_passes = 0
        self._patience_s = patience_s
        self._clock = clock
        self._silence = SilenceDetector(after_s, clock)
        super().__init__("direct-claims", self.turn, LOOK_S)

    def turn(self) -> float:
        """Poll once and run what was found; return how long to wait for the next turn. Raises Unavailable."""
        self._claim_client.give_back_lost()
        self._silence.count(self._admission.num_messages)
        has_room = self._admission.has_room()
        if self._admission.is_closed or (self._silence.is_long and not has_room):
            return BUSY_S
        found = self._claim_client.claimable()
        if found.suspects and self._admission.is_able:
            self._run_suspects()
        waits = found.others and has_room
        if not (self._silence.look(waits=waits) and waits):
            return LOOK_S
        self._claim_others()
        return BUSY_S

    def _claim_others(self) -> None:
        tickets: list[Ticket] = []
        while len(tickets) < MOST_CLAIMED and (ticket := self._admission.take_without_message()) is not None:
            tickets.append(ticket)
        attempts: list[Attempt] = []
        try:
            attempts = self._claim_client.claim_waiting(len(tickets)) if tickets else []
        finally:
            for ticket in tickets[len(attempts) :]:
                self._admission.give_back(ticket)
        for ticket, attempt in zip(tickets, attempts, strict=False):
            threading.Thread(target=self._run_one, args=(ticket, attempt), name="direct-job", daemon=True).start()

    def _run_one(self, ticket: Ticket, attempt: Attempt) -> None:
        try:
            with self._admission.working_on(ticket):
                self._runner.run_claimed(attempt)
        finally:
            self._admission.give_back(ticket)

    def _run_suspects(self) -> None:
        """Run suspects in a gap between jobs. If there is none, and no other worker closes, close until there is
        one."""
        with self._admission.reserved(gap_within_s=self._patience_s) as is_empty:
            if is_empty:
                self._run_them_alone()
                return
        if self._admission.is_closed:
            return
        with ExitStack() as stack:
            closer = stack.enter_context(self._claim_client.closing(heed_load=self._num_passes < _MOST_PASSES))
            self._num_passes += 1
            if closer is None:
                return
            self._num_passes = 0
            with self._admission.reserved():
                if not self._make_gap(closer):
                    return
                # From here on other workers see a running suspect.
                stack.close()
                self._run_them_alone()

    def _make_gap(self, closer: Closer) -> bool:
        """Wait until no admitted job is left; False if there is no reason to stay closed any more."""
        until = self._clock() + MOST_SHUT * self._patience_s
        while not self._admission.wait_empty(LOOK_S):
            # Another worker may have run the suspects in a gap.
            if self._admission.is_closed or not closer.is_needed():
                return False
            if self._clock() > until:
                self._hand_on()
        return True

    def _run_them_alone(self) -> None:
        """Run suspects one after the other, for about ``PASS`` times ``patience_s``."""
        until = self._clock() + PASS * self._patience_s
        while not self._admission.is_closed and self._run_suspect() and self._clock() < until:
            pass

    def _run_suspect(self) -> bool:
        with self._admission.alone():
            attempt = self._claim_client.claim_suspect() if self._admission.can_begin else None
            if attempt is None:
                return False
            log.info("running_alone", job_id=attempt.job_id, epoch=attempt.epoch, crashes=attempt.claim.crashes)
            self._runner.run_claimed(attempt)
            return True
