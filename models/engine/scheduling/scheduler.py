"""What runs in the next step: a pure decision over the requests inside, the token budget and the free KV blocks.

It knows no clock, no thread and no model. Requests have an order, which nobody overtakes in:

    the oldest of all ▸ the best class, oldest first ▸ the next class, oldest first ▸ …

Whoever lacks blocks takes them from the last in this order; whoever waits for a place takes it from a worse class if
that makes room. So the oldest of all always runs (it can take the blocks of every other one, and was refused if the
pool cannot hold it), ends, and makes the next one the oldest: one place goes by age alone, and none starves, whatever
its class. All other places go to the best class first. While somebody waits for a first token the background, which is
the batch class, sits out: its requests keep their places and blocks, and only the oldest of all goes on.
"""

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from math import inf

from models.engine.kv.block_pool import BlockPool
from models.engine.kv.block_tables import BlockTables
from models.engine.requests import BACKGROUND_RANK
from models.engine.runner import Interrupt, Row, Sampled, StepPlan
from models.engine.scheduling.prefill_budget import Pacer
from models.engine.sequences.sequence import LiveRequest
from models.engine.speculation.drafts import Speculation

_FIRST = -1  # better than any class


class Scheduler:
    """Iteration-level batching: requests join and leave at every step.

    A running request holds the blocks of all its known tokens, taken at admission, and takes one more whenever its
    output grows over a border. Each running request needs at least one token of the budget, so no more than
    ``step_tokens`` of them run, whatever ``max_slots`` says.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_slots: int,
        step_tokens: int,
        speculation: Speculation | None = None,
        pacer: Pacer | None = None,
    ) -> None:
        self._pool = pool
        self._tables = BlockTables(pool)
        self._speculation = speculation or Speculation(0)
        self._pacer = pacer or Pacer(inf)
        self._step_tokens = step_tokens
        self._max_running = min(max_slots, step_tokens)
        self._arrivals = count()
        self._by_age: dict[LiveRequest, None] = {}  # everybody
        self._running: list[LiveRequest] = []
        self._waiting: list[LiveRequest] = []
        self.num_preempted = 0

    @property
    def running(self) -> tuple[LiveRequest, ...]:
        """The requests that hold blocks, the last to give way first."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[LiveRequest, ...]:
        """The requests that hold nothing, in the order in which they are admitted."""
        return tuple(self._waiting)

    @property
    def num_found(self) -> int:
        """Prompt tokens that did not have to be computed, of all requests so far."""
        return self._tables.num_found

    def add(self, live: LiveRequest) -> None:
        """Take a new request in, behind all others of its class."""
        live.place = live.request.class_rank, next(self._arrivals)
        self._by_age[live] = None
        self._wait(live)
        self._advance_oldest()

    def remove(self, live: LiveRequest, *, is_sound: bool = True) -> None:
        """Let a request go, wherever it is; its blocks are free at once.

        One that is not sound has failed: nobody finds its blocks again.
        """
        self._speculation.forget(live.id)
        del self._by_age[live]
        if live in self._running:
            if not is_sound:
                self._tables.forget(live)
            self._running.remove(live)
            self._tables.release(live)
        else:
            self._waiting.remove(live)
        self._advance_oldest()

    def plan(self) -> StepPlan | None:
        """Return what runs now, or None if nothing is inside: decode rows first, then prefill chunks, in order."""
        self._make_room()
        self._admit()
        self._take_over()
        is_waited_for = self._is_waited_for()
        taking_part = self._taking_part(is_waited_for=is_waited_for)
        decoding = [live for live in taking_part if live.is_decoding and self._tables.covers(live)]
        # The background's streams are held up by a prompt, and nobody minds; nor does anybody wait for its own.
        num_streams = _num_waited_for(decoding)
        num_others = _num_waited_for(taking_part) + _num_waited_for(self._waiting) - num_streams
        budget = self._pacer.budget(num_streams, num_others, self._step_tokens - len(decoding))
        chunks = self._chunks(taking_part, budget, self._pacer.background_budget(is_waited_for=is_waited_for))
        # Beside a prompt there is no compute to spare.
        spare = 0 if chunks else min(self._speculation.spare_tokens, self._step_tokens) - len(decoding)
        rows = [*self._decode_rows(decoding, spare), *chunks]
        # What the background loses by it is done again; nothing of it was told to anybody.
        is_background = all(row.request.class_rank >= BACKGROUND_RANK for row in rows)
        return StepPlan(tuple(rows), Interrupt() if is_background else None) if rows else None

    def record(self, plan: StepPlan, sampled: Sequence[Sampled] = ()) -> None:
        """Note that the known tokens of the rows of ``plan`` are in the cache, and which drafts were right.

        Each request takes the tokens that it got afterwards.
        """
        rows = {row.request.id: row for row in plan.rows}
        accepted = {one.request_id: len(one.accepted) for one in sampled}
        for live in self._running:
            if row := rows.get(live.id):
                self._tables.fill(live, len(row.tokens) - len(row.drafts))
                if row.drafts:
                    self._speculation.record(live, len(row.drafts), accepted.get(live.id, 0))

    def clear(self) -> None:
        """Let everybody go, whatever state the books are in."""
        self._by_age.clear()
        self._running.clear()
        self._waiting.clear()
        self._pool.reset()

    def _make_room(self) -> None:
        """Give each decoding request the block of its next position, as far as that is to be had."""
        # Over a copy: a request whose blocks one before it took meanwhile is not decoding any more.
        for live in self.running:
            while live.is_decoding and not self._tables.grow(live):
                if self._running[-1] is live:
                    break  # those before it hold all: it must sit this step out
                self._preempt_last()

    def _admit(self) -> None:
        """Let waiting requests run, in order, while there is a slot and room for all their known tokens.

        One block more for each running request must stay free, or a request that was just preempted would come back
        and be preempted again before it has paid for its recomputation.
        """
        while self._waiting and (self._has_place(self._waiting[0]) or self._displace(self._waiting[0])):
            live = self._waiting.pop(0)
            self._tables.begin(live)
            insort(self._running, live, key=_place)

    def _has_place(self, live: LiveRequest) -> bool:
        num_running = len(self._running)
        return num_running < self._max_running and self._tables.room_for(live) + num_running <= self._pool.num_free

    def _displace(self, live: LiveRequest) -> bool:
        """Make a place for ``live`` by preempting requests of worse classes, unless all of them are not enough."""
        worse = [other for other in self._running if other.place[0] > live.place[0]]
        num_better = len(self._running) - len(worse)
        most_free = self._pool.num_free + sum(len(other.blocks) for other in worse)
        if self._tables.room_for(live) + num_better > most_free:
            return False
        for _ in worse:
            self._preempt_last()
            if self._has_place(live):
                return True
        return False

    def _take_over(self) -> None:
        """Let those who are not decoding yet go on after what others have computed meanwhile."""
        for live in self._running:
            if not live.is_decoding:
                self._tables.take_over(live)

    def _decode_rows(self, decoding: Sequence[LiveRequest], spare: int) -> Iterator[Row]:
        """Return the rows of requests that decode, with up to ``spare`` drafts for all of them together."""
        self._speculation.begin(len(decoding))
        for live in decoding:
            drafts = self._speculation.draft(live, spare)
            # Nobody is preempted for a guess: one block for each running request stays free, as in admission.
            drafts = drafts[: self._tables.stretch(live, len(drafts), reserve=len(self._running))]
            spare -= len(drafts)
            yield _row(live, 1, drafts)

    def _is_waited_for(self) -> bool:
        """True if a prompt is to be computed whose first token somebody waits for."""
        return any(not live.is_decoding and live.request.class_rank < BACKGROUND_RANK for live in self._running)

    def _taking_part(self, *, is_waited_for: bool) -> list[LiveRequest]:
        """Return those who may have a row in this step: without the background while somebody waits for a first token.

        The oldest of all is in every step, whatever its class.
        """
        return [live for live in self._running if not is_waited_for or live.place[0] < BACKGROUND_RANK]

    def _chunks(self, taking_part: Sequence[LiveRequest], budget: int, background: int | None) -> list[Row]:
        """Share ``budget`` tokens out among those taking part who are not decoding yet, at most ``background`` of them
        among those that nobody waits for.

        A request whose next block is filled by one before it in this very step waits for that one.
        """
        rows: list[Row] = []
        under_way: set[bytes | None] = set()
        for live in taking_part:
            if budget == 0:
                break
            if live.is_decoding or (under_way and self._tables.next_name(live) in under_way):
                continue
            size = min(live.num_pending, budget)
            if background is not None and live.request.class_rank >= BACKGROUND_RANK:
                size = min(size, background)
                background -= size
            if not size:
                continue
            under_way.update(self._tables.names_filled_by(live, size))
            rows.append(_row(live, size))
            budget -= size
        return rows

    def _preempt_last(self) -> None:
        live = self._running.pop()
        self._tables.release(live)
        live.was_preempted = True
        self._wait(live)
        self.num_preempted += 1

    def _wait(self, live: LiveRequest) -> None:
        insort(self._waiting, live, key=_place)

    def _advance_oldest(self) -> None:
        """Put the oldest of all before everybody, until it leaves."""
        oldest = next(iter(self._by_age), None)
        if oldest is not None and oldest.place[0] != _FIRST:
            line = self._running if oldest in self._running else self._waiting
            line.remove(oldest)
            oldest.place = _FIRST, oldest.place[1]
            line.insert(0, oldest)


def _num_waited_for(requests: Iterable[LiveRequest]) -> int:
    return sum(live.request.class_rank < BACKGROUND_RANK for live in requests)


def _place(live: LiveRequest) -> tuple[int, int]:
    return live.place


def _row(live: LiveRequest, count: int, drafts: Sequence[int] = ()) -> Row:
    return Row(
        request=live.request,
        tokens=(*live.pending(count), *drafts),
        start=live.num_cached,
        blocks=live.blocks,
        output=live.output,
        sample=count == live.num_pending,
        drafts=drafts,
    )
