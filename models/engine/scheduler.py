"""What runs in the next step: a pure decision over the requests inside, the token budget and the free KV blocks.

It knows no clock, no thread and no model. Requests keep the order in which they came:

    oldest ▸ [ running … | waiting … ] ◂ newest

Admission moves the border to the right, preemption moves it to the left, and nothing overtakes. So the oldest
request always runs (it can take the blocks of every other one, and was refused if the pool cannot hold it), ends, and
makes the next one the oldest: none starves.
"""

from collections import deque

from models.engine.blocks import BlockPool
from models.engine.live import LiveRequest
from models.engine.runner import Row, StepPlan


class Scheduler:
    """Iteration-level batching: requests join and leave at every step.

    A running request holds the blocks of all its known tokens, taken at admission, and takes one more whenever its
    output grows over a border. Each running request needs at least one token of the budget, so no more than
    ``step_tokens`` of them run, whatever ``max_slots`` says.
    """

    def __init__(self, pool: BlockPool, *, max_slots: int, step_tokens: int) -> None:
        self._pool = pool
        self._step_tokens = step_tokens
        self._max_running = min(max_slots, step_tokens)
        self._running: list[LiveRequest] = []
        self._waiting: deque[LiveRequest] = deque()
        self.num_preempted = 0

    @property
    def running(self) -> tuple[LiveRequest, ...]:
        """The requests that hold blocks, oldest first."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[LiveRequest, ...]:
        """The requests that hold nothing, oldest first."""
        return tuple(self._waiting)

    def add(self, live: LiveRequest) -> None:
        """Take a new request in, behind all others."""
        self._waiting.append(live)

    def remove(self, live: LiveRequest) -> None:
        """Let a request go, wherever it is; its blocks are free at once."""
        if live in self._running:
            self._running.remove(live)
            self._release(live)
        else:
            self._waiting.remove(live)

    def plan(self) -> StepPlan | None:
        """Return what runs now, or None if nothing is inside: decode rows first, then prefill chunks, oldest first."""
        rows = self._decode_rows()
        self._admit()
        budget = self._step_tokens - len(rows)
        for live in self._running:
            if budget and live.num_pending and not live.is_decoding:
                rows.append(_row(live, min(live.num_pending, budget)))
                budget -= len(rows[-1].tokens)
        return StepPlan(tuple(rows)) if rows else None

    def record(self, plan: StepPlan) -> None:
        """Note that the rows of ``plan`` are in the cache."""
        sizes = {row.request.id: len(row.tokens) for row in plan.rows}
        for live in self._running:
            live.num_cached += sizes.get(live.id, 0)

    def clear(self) -> None:
        """Let everybody go, whatever state the books are in."""
        self._running.clear()
        self._waiting.clear()
        self._pool.reset()

    def _decode_rows(self) -> list[Row]:
        # Over a copy: a request whose blocks an older one took meanwhile is not decoding any more.
        return [_row(live, 1) for live in self.running if live.is_decoding and self._has_room(live)]

    def _has_room(self, live: LiveRequest) -> bool:
        """Give ``live`` the block of its next position; False if older requests hold all and it must sit this out."""
        while len(live.blocks) < self._pool.blocks_for(live.num_tokens):
            block = self._pool.allocate(1)
            if block is not None:
                live.blocks += block
            elif self._running[-1] is live:
                return False
            else:
                self._preempt_youngest()
        return True

    def _admit(self) -> None:
        """Let waiting requests run, in order, while there is a slot and room for all their known tokens.

        One block more for each running request must stay free, or a request that was just preempted would come back
        and be preempted again before it has paid for its recomputation.
        """
        while self._waiting and len(self._running) < self._max_running:
            live = self._waiting[0]
            needed = self._pool.blocks_for(live.num_tokens)
            if needed + len(self._running) > self._pool.num_free:
                return
            live.blocks = self._pool.allocate(needed) or []
            self._running.append(self._waiting.popleft())

    def _preempt_youngest(self) -> None:
        live = self._running.pop()
        self._release(live)
        self._waiting.appendleft(live)
        self.num_preempted += 1

    def _release(self, live: LiveRequest) -> None:
        self._pool.free(live.blocks)
        live.blocks = []
        live.num_cached = 0


def _row(live: LiveRequest, count: int) -> Row:
    return Row(
        request=live.request,
        tokens=live.pending(count),
        start=live.num_cached,
        blocks=live.blocks,
        output=live.output,
        sample=count == live.num_pending,
    )
