"""Iteration-level scheduling: which requests run in the next step. A pure decision over requests, tokens and KV blocks.

It knows no clock, no thread and no model. Requests have an order, in which no request overtakes another:

    the oldest of all ▸ the best class, oldest first ▸ the next class, oldest first ▸ …

A request that needs blocks takes them from the last request in this order (preemption). A waiting request preempts
running ones of a worse class if that makes enough room. The oldest request comes first whatever its class: it can take
the blocks of every other one, so it always runs and ends, and then the next one is the oldest. So no request starves.

The batch class is the background. While an interactive request waits for its first token, background requests keep
their slots and blocks but have no rows in the step; only the oldest of all continues.

``LengthEstimator`` estimates output lengths from the last outputs that came to their end.
Few requests use all of their ``max_tokens``, so blocks reserved for all of them would mostly stay empty. For a request
with ``n`` output tokens the estimate is the mean residual life: the average rest of those recent outputs that were
longer than ``n``. If the estimate is too low, a request is preempted and recomputed; no output is lost.

``PrefillBudget`` limits the prompt tokens of a step by time, so that prefill hardly slows down running streams.

    one step:  | decode rows, d seconds | prompt tokens, c seconds each |     d and c are learned from the steps
               └────────── at most stretch × d ─────────────────────────┘

Chunked prefill alone limits a step by its number of tokens, whatever they cost. Sarathi-Serve (Agrawal et al. 2024)
limits it by time, with a profile that is measured beforehand; here the steps themselves are the profile. The limit is
lifted when the requests that wait for their first token are more than a third of the running streams: in a burst a slow
prefill keeps slots idle, which costs all requests more than a longer gap costs the few streams.
"""

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, count
from math import inf
from statistics import median

from headrace.models.engine.block_manager import BlockPool, BlockTables
from headrace.models.engine.requests import BACKGROUND_RANK
from headrace.models.engine.runner import Interrupt, Row, Sampled, StepPlan
from headrace.models.engine.sequence import SequenceState
from headrace.models.engine.speculation import Speculation

LAST_OUTPUTS = 256
FEWEST = 16
"""Outputs that must have ended before anything is estimated; until then each request counts with its ``max_tokens``."""


class LengthEstimator:
    """The lengths of the last ``LAST_OUTPUTS`` outputs."""

    def __init__(self) -> None:
        self._last: deque[int] = deque()
        self._sorted: list[int] = []
        self._sums: list[int] = []  # _sums[i] = sum(_sorted[i:])

    def record(self, num_tokens: int) -> None:
        """Record an output that came to its end with ``num_tokens`` tokens."""
        if len(self._last) == LAST_OUTPUTS:
            self._sorted.remove(self._last.popleft())
        self._last.append(num_tokens)
        insort(self._sorted, num_tokens)
        self._sums = [*accumulate(reversed(self._sorted))][::-1]

    def remaining(self, num_output: int, max_tokens: int) -> int:
        """Return how many more tokens to expect of an output with ``num_output`` tokens and at most ``max_tokens``."""
        most = max_tokens - num_output
        if len(self._last) < FEWEST:
            return most
        first = bisect_right(self._sorted, num_output)
        num_longer = len(self._sorted) - first
        if num_longer == 0:
            return min(most, num_output)  # longer than all recent ones: expect as much again
        return min(most, -(-(self._sums[first] - num_longer * num_output) // num_longer))


LAST_STEPS = 16
"""Steps of each kind that are remembered: few, because rows and contexts change."""

FEWEST_TOKENS = 16
"""Prompt tokens that a step always allows, however slow they are. Smaller chunks are not measured."""

_MOST_WAITING = 1 / 3
"""Waiting requests per running stream (or one request) above which nothing limits a step's time."""

BACKGROUND_S = 0.015
"""Background prefill runs in chunks of about this long: an interactive request that arrives waits for one chunk."""

_LEAST_SHARE = 0.1  # of a step's time that its prompt tokens are assumed to take at least


class PrefillBudget:
    """Learns the duration of steps. ``stretch`` may be infinite: then there is no limit."""

    def __init__(self, stretch: float) -> None:
        self._stretch = stretch
        self._decode_s: deque[float] = deque(maxlen=LAST_STEPS)
        self._decode_rows: deque[int] = deque(maxlen=LAST_STEPS)
        self._token_s: deque[float] = deque(maxlen=LAST_STEPS)  # of a prompt token beside streams
        self._token_alone_s: deque[float] = deque(maxlen=LAST_STEPS)  # in larger chunks, so a little faster

    def record(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        """Learn from a step with ``num_decode`` decode rows and ``num_prefill`` prompt tokens."""
        if not num_prefill:
            self._decode_s.append(seconds)
            self._decode_rows.append(num_decode)
        elif num_prefill >= FEWEST_TOKENS and not num_decode:
            self._token_alone_s.append(seconds / num_prefill)
        elif num_prefill >= FEWEST_TOKENS and self._decode_s and 2 * num_decode >= median(self._decode_rows):
            # If most streams were not in the step, the time of its decode rows is not known.
            prompt_s = max(seconds - median(self._decode_s), _LEAST_SHARE * seconds)
            self._token_s.append(prompt_s / num_prefill)

    def budget(self, num_decoding: int, num_others: int, most: int) -> int:
        """Return how many prompt tokens, at most ``most``, may enter beside ``num_decoding`` streams.

        ``num_others`` are the active requests without a token yet, running or waiting.
        """
        if num_others > max(1.0, _MOST_WAITING * num_decoding):
            return most
        token_s = self._prompt_token_s()
        if not (num_decoding and self._decode_s and token_s):
            return most
        spare_s = (self._stretch - 1) * median(self._decode_s)
        return int(min(most, max(FEWEST_TOKENS, spare_s / token_s)))

    def background_budget(self, *, is_interactive: bool) -> int | None:
        """Return how many background prompt tokens may be in a step; None if there is no limit or nothing is known.

        ``is_interactive``: the step has interactive prefill too.
        """
        token_s = self._prompt_token_s()
        if self._stretch == inf or not token_s:
            return None
        return FEWEST_TOKENS if is_interactive else max(FEWEST_TOKENS, int(BACKGROUND_S / token_s))

    def _prompt_token_s(self) -> float:
        """Return the seconds of a prompt token, 0 while unknown."""
        # The 75th percentile: a gap of two steps is noticed, a chunk that is a little smaller than possible is not.
        known = sorted(self._token_s or self._token_alone_s)
        return known[len(known) * 3 // 4] if known else 0.0


_OLDEST = -1  # class rank of the oldest request: better than any class


class Scheduler:
    """Requests join and leave at every step.

    A running request has the blocks of all its known tokens from its admission on, and one more whenever its output
    crosses a block border. Each running request needs at least one token of the budget, so at most ``step_tokens`` of
    them run, even if ``max_slots`` is larger.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_slots: int,
        step_tokens: int,
        speculation: Speculation | None = None,
        lookahead_tokens: int = 0,
        prefill_budget: PrefillBudget | None = None,
    ) -> None:
        self._pool = pool
        self._tables = BlockTables(pool)
        self._speculation = speculation or Speculation(0)
        self._prefill_budget = prefill_budget or PrefillBudget(inf)
        self._lookahead_tokens = lookahead_tokens
        self._step_tokens = step_tokens
        self._max_running = min(max_slots, step_tokens)
        self._arrivals = count()
        self._by_age: dict[SequenceState, None] = {}  # running and waiting
        self._running: list[SequenceState] = []
        self._waiting: list[SequenceState] = []
        self.num_preempted = 0

    @property
    def running(self) -> tuple[SequenceState, ...]:
        """The requests that have blocks, in order: the last one is preempted first."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[SequenceState, ...]:
        """The requests without blocks, in the order in which they are admitted."""
        return tuple(self._waiting)

    @property
    def num_cached_prompt_tokens(self) -> int:
        """Prompt tokens that were in the prefix cache, of all requests so far."""
        return self._tables.num_found

    def add(self, seq: SequenceState) -> None:
        """Add a new request behind all others of its class."""
        seq.order_key = seq.request.class_rank, next(self._arrivals)
        self._by_age[seq] = None
        self._wait(seq)
        self._promote_oldest()

    def remove(self, seq: SequenceState, *, is_sound: bool = True) -> None:
        """Remove a request, running or waiting; its blocks are free at once.

        Not ``is_sound``: it has failed, so its blocks leave the prefix cache.
        """
        self._speculation.forget(seq.id)
        del self._by_age[seq]
        if seq in self._running:
            if not is_sound:
                self._tables.invalidate(seq)
            self._running.remove(seq)
            self._tables.release(seq)
        else:
            self._waiting.remove(seq)
        self._promote_oldest()

    def schedule(self) -> StepPlan | None:
        """Return the next step, or None without requests: decode rows first, then prefill chunks, in order."""
        self._grow_or_preempt()
        self._admit()
        self._adopt_cached_blocks()
        is_interactive = self._has_interactive_prefill()
        candidates = self._candidates(is_interactive=is_interactive)
        decoding = [seq for seq in candidates if seq.is_decoding and self._tables.covers(seq)]
        # Only interactive streams are protected from prefill, and only interactive prompts lift the limit.
        num_streams = _num_interactive(decoding)
        num_others = _num_interactive(candidates) + _num_interactive(self._waiting) - num_streams
        budget = self._prefill_budget.budget(num_streams, num_others, self._step_tokens - len(decoding))
        background = self._prefill_budget.background_budget(is_interactive=is_interactive)
        chunks = self._prefill_rows(candidates, budget, background)
        # A step with prefill has no spare compute for drafts.
        spare = 0 if chunks else min(self._speculation.spare_tokens, self._step_tokens) - len(decoding)
        rows = [*self._decode_rows(decoding, spare), *chunks]
        # An interrupted background step is computed again: none of its tokens was used.
        is_background = all(row.request.class_rank >= BACKGROUND_RANK for row in rows)
        return StepPlan(tuple(rows), Interrupt() if is_background else None) if rows else None

    def postprocess(self, plan: StepPlan, sampled: Sequence[Sampled] = ()) -> None:
        """Note that the known tokens of the plan's rows are in the KV cache, and which drafts were accepted.

        The caller appends the sampled tokens to the requests afterwards.
        """
        rows = {row.request.id: row for row in plan.rows}
        accepted = {one.request_id: len(one.accepted) for one in sampled}
        for seq in self._running:
            if row := rows.get(seq.id):
                self._tables.note_computed(seq, len(row.tokens) - len(row.drafts))
                if row.drafts:
                    self._speculation.record(seq, len(row.drafts), accepted.get(seq.id, 0))

    def clear(self) -> None:
        """Remove all requests, whatever state they are in."""
        self._by_age.clear()
        self._running.clear()
        self._waiting.clear()
        self._pool.reset()

    def _grow_or_preempt(self) -> None:
        """Allocate the block of each decoding request's next position; preempt later requests for it if necessary."""
        # Over a copy, because the loop preempts: a preempted request is not decoding any more.
        for seq in self.running:
            while seq.is_decoding and not self._tables.grow(seq):
                if self._running[-1] is seq:
                    break  # earlier requests use all blocks: it has no row in this step
                self._preempt_last()

    def _admit(self) -> None:
        """Admit waiting requests, in order, while there is a slot and there are blocks for all their known tokens.

        One block for each running request must stay free. Otherwise a preempted request would come back at once and be
        preempted again before its recomputation has paid off.
        """
        while self._waiting and (self._fits(self._waiting[0]) or self._preempt_for(self._waiting[0])):
            seq = self._waiting.pop(0)
            self._tables.allocate(seq)
            insort(self._running, seq, key=_order_key)

    def _fits(self, seq: SequenceState) -> bool:
        num_running = len(self._running)
        return num_running < self._max_running and self._tables.num_needed(seq) + num_running <= self._pool.num_free

    def _preempt_for(self, seq: SequenceState) -> bool:
        """Preempt requests of worse classes until ``seq`` fits; False, and no change, if all of them are too few."""
        worse = [other for other in self._running if other.order_key[0] > seq.order_key[0]]
        num_better = len(self._running) - len(worse)
        left = self._pool.left_by(other.blocks for other in worse)
        if self._tables.num_needed(seq, left) + num_better > self._pool.num_free + len(left):
            return False
        for _ in worse:
            self._preempt_last()
            if self._fits(seq):
                return True
        return False

    def _adopt_cached_blocks(self) -> None:
        """Let prefilling requests skip the blocks that other requests have computed meanwhile."""
        for seq in self._running:
            if not seq.is_decoding:
                self._tables.adopt_cached(seq)

    def _decode_rows(self, decoding: Sequence[SequenceState], spare: int) -> Iterator[Row]:
        """Return the rows of decoding requests, with up to ``spare`` drafts for all of them together.

        No request is preempted for a draft or for lookahead: one block for each running request stays free, as in
        admission.
        """
        leave_free = len(self._running)
        self._speculation.begin(len(decoding))
        for seq in decoding:
            drafts = self._speculation.draft(seq, spare)
            drafts = drafts[: self._tables.reserve(seq, len(drafts), leave_free=leave_free)]
            if self._lookahead_tokens:
                ahead = min(self._lookahead_tokens, seq.max_tokens - seq.num_tokens - 1)
                self._tables.reserve(seq, ahead, leave_free=leave_free)
            spare -= len(drafts)
            yield _row(seq, 1, drafts)

    def _has_interactive_prefill(self) -> bool:
        """Return True if a running interactive request has no token yet."""
        return any(not seq.is_decoding and seq.request.class_rank < BACKGROUND_RANK for seq in self._running)

    def _candidates(self, *, is_interactive: bool) -> list[SequenceState]:
        """Return the requests that may have a row in this step: none of the background beside interactive prefill.

        The oldest request is in every step, whatever its class.
        """
        return [seq for seq in self._running if not is_interactive or seq.order_key[0] < BACKGROUND_RANK]

    def _prefill_rows(self, candidates: Sequence[SequenceState], budget: int, background: int | None) -> list[Row]:
        """Share ``budget`` tokens among the candidates that are not decoding, in order.

        Background requests get at most ``background`` of them. If an earlier row of
        this step fills the next block of a request, the request waits and adopts that block in the next step.
        """
        rows: list[Row] = []
        being_filled: set[bytes | None] = set()
        for seq in candidates:
            if budget == 0:
                break
            if seq.is_decoding or (being_filled and self._tables.next_hash(seq) in being_filled):
                continue
            size = min(seq.num_pending, budget)
            if background is not None and seq.request.class_rank >= BACKGROUND_RANK:
                size = min(size, background)
                background -= size
            if not size:
                continue
            being_filled.update(self._tables.hashes_filled_by(seq, size))
            rows.append(_row(seq, size))
            budget -= size
        return rows

    def _preempt_last(self) -> None:
        seq = self._running.pop()
        self._tables.release(seq)
        seq.was_preempted = True
        self._wait(seq)
        self.num_preempted += 1

    def _wait(self, seq: SequenceState) -> None:
        insort(self._waiting, seq, key=_order_key)

    def _promote_oldest(self) -> None:
        """Put the oldest request before all others, until it ends."""
        oldest = next(iter(self._by_age), None)
        if oldest is not None and oldest.order_key[0] != _OLDEST:
            queue = self._running if oldest in self._running else self._waiting
            queue.remove(oldest)
            oldest.order_key = _OLDEST, oldest.order_key[1]
            queue.insert(0, oldest)


def _num_interactive(requests: Iterable[SequenceState]) -> int:
    return sum(seq.request.class_rank < BACKGROUND_RANK for seq in requests)


def _order_key(seq: SequenceState) -> tuple[int, int]:
    return seq.order_key


def _row(seq: SequenceState, count: int, drafts: Sequence[int] = ()) -> Row:
    return Row(
        request=seq.request,
        tokens=(*seq.pending(count), *drafts),
        start=seq.num_cached,
        blocks=seq.blocks,
        output=seq.output,
        sample=count == seq.num_pending,
        drafts=drafts,
        scores_prompt=seq.is_scoring_prompt,
    )
