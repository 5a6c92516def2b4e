"""Jobs that come without a message: those that must run alone, and all of them while Redis is silent.

Asks Postgres once a second what waits. A suspect, whose worker died, is never announced: once nothing else is in this
process it runs here by itself, so that if it kills again it kills nobody else. Other jobs are claimed from Postgres
while they wait, the engine has room and no message comes. Knows no broker: silence is that no message came.

    look ──suspects──▶ a gap, or the door is shut ──▶ one after the other, each alone ──▶ the door is open again
      └──others──▶ still waiting and no message for ``after_s`` ──▶ claim what there is room for

Where all workers are busy, one of them shuts its door, the one with the fewest jobs
(``store.scheduling.dispatch_queries.closing``), and the others go on. What still runs there after a while is handed on,
so that neither the suspect nor whoever stands before the door waits for the longest job.
"""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

import structlog

from store.errors import Unavailable
from store.scheduling.dispatch_queries import Closer
from workers.runs.claim_client import Ledger
from workers.runs.engine_admission import Admission, Ticket
from workers.runs.in_flight import Attempt

log = structlog.get_logger(__name__)

LOOK_S = 1.0
"""Between two looks into Postgres while nothing is found."""

BUSY_S = 0.05
"""Between two looks while Redis is silent and jobs wait: the engine must not run dry."""

MOST_CLAIMED = 64

MOST_SHUT = 6
"""A door is shut for so many times as long as its worker waited for a gap; then what still runs is handed on."""

_MOST_PASSES = 3
# So often a worker leaves it to a less loaded one to shut its door.


class Executor(Protocol):
    """What runs a claimed attempt."""

    def run_claimed(self, attempt: Attempt) -> None:
        """Run it to its outcome on the calling thread; raises nothing."""
        ...


class Silence:
    """Says when no message came for ``after_s`` although a job waited and there was room for it."""

    def __init__(self, after_s: float, clock: Callable[[], float]) -> None:
        self._after_s = after_s
        self._clock = clock
        self._num_messages = 0
        self._began_at: float | None = None
        self.is_long = False

    def count(self, num_messages: int) -> None:
        """Note how many messages have come by now: a new one ends the silence."""
        if num_messages != self._num_messages:
            self._num_messages, self._began_at, self.is_long = num_messages, None, False

    def look(self, *, waits: bool) -> bool:
        """Note whether a job waits that there is room for; True if that has been so for long without a message.

        A silence that was long once stays long without jobs, so that the next one need not wait for it all again.
        """
        if not waits:
            self._began_at = None
        elif self._began_at is None:
            self._began_at = self._clock()
        elif not self.is_long and self._clock() - self._began_at >= self._after_s:
            self.is_long = True
            log.warning("redis_is_silent", waited_s=self._after_s)
        return self.is_long


class DirectClaims:
    """A thread that claims from Postgres; the settings ``suspect_patience_s`` and ``direct_after_s`` are its times.

    ``hand_on`` gives what the engine runs back to the queue with what it has, for any worker to go on with.
    """

    def __init__(
        self,
        ledger: Ledger,
        admission: Admission,
        executor: Executor,
        *,
        hand_on: Callable[[], None],
        after_s: float,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._admission = admission
        self._executor = executor
        self._hand_on = hand_on
        self._num_passes = 0
        self._patience_s = patience_s
        self._clock = clock
        self._silence = Silence(after_s, clock)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="direct-claims", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def stop(self) -> None:
        """Claim nothing any more; what was claimed goes on."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._turn()):
            pass

    def _turn(self) -> float:
        """Look, and do what there is to do; return how long to wait for the next turn."""
        try:
            return self._look()
        except Unavailable as error:
            log.warning("direct_claim_waits", error=error.message)
        except Exception as error:  # noqa: BLE001 - without this thread suspects would never run again
            log.error("direct_claim_failed", error=type(error).__name__)
        return LOOK_S

    def _look(self) -> float:
        self._ledger.give_back_lost()
        self._silence.count(self._admission.num_messages)
        has_room = self._admission.has_room()
        if self._admission.is_closed or (self._silence.is_long and not has_room):
            return BUSY_S
        found = self._ledger.claimable()
        if found.suspects:
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
            attempts = self._ledger.claim_waiting(len(tickets)) if tickets else []
        finally:
            for ticket in tickets[len(attempts) :]:
                self._admission.give_back(ticket)
        for ticket, attempt in zip(tickets, attempts, strict=False):
            threading.Thread(target=self._run_one, args=(ticket, attempt), name="direct-job", daemon=True).start()

    def _run_one(self, ticket: Ticket, attempt: Attempt) -> None:
        try:
            with self._admission.working_on(ticket):
                self._executor.run_claimed(attempt)
        finally:
            self._admission.give_back(ticket)

    def _run_suspects(self) -> None:
        """Run suspects in a gap. If there is none, and no other worker is at it, shut the door until there is."""
        with self._admission.reserved(gap_within_s=self._patience_s) as is_empty:
            if is_empty:
                self._run_them_alone()
                return
        if self._admission.is_closed:
            return
        with ExitStack() as stack:
            closer = stack.enter_context(self._ledger.closing(heed_load=self._num_passes < _MOST_PASSES))
            self._num_passes += 1
            if closer is None:
                return
            self._num_passes = 0
            with self._admission.reserved():
                if not self._make_gap(closer):
                    return
                # From here on the others see a suspect that runs.
                stack.close()
                self._run_them_alone()

    def _make_gap(self, closer: Closer) -> bool:
        """Wait until nobody is past the shut door; False if there is nothing to keep it shut for any more."""
        until = self._clock() + MOST_SHUT * self._patience_s
        while not self._admission.wait_empty(LOOK_S):
            # Another worker may have had a gap.
            if self._admission.is_closed or not closer.is_needed():
                return False
            if self._clock() > until:
                self._hand_on()
        return True

    def _run_them_alone(self) -> None:
        """Run suspects one after the other, for about as long as the others were given time to make a gap."""
        until = self._clock() + self._patience_s
        while not self._admission.is_closed and self._run_suspect() and self._clock() < until:
            pass

    def _run_suspect(self) -> bool:
        with self._admission.alone():
            attempt = self._ledger.claim_suspect()
            if attempt is None:
                return False
            log.info("running_alone", job_id=attempt.job_id, epoch=attempt.epoch, crashes=attempt.claim.crashes)
            self._executor.run_claimed(attempt)
            return True
