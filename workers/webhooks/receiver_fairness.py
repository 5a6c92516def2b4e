"""Fairness between webhook receivers: which delivery goes next, and which receiver is left alone for a while.

Pure bookkeeping with the clock passed in: nothing is sent or stored here. A receiver is an endpoint, or for URLs that
came with jobs a tenant's host and port, so a slow or dead one holds a few senders at most, and soon none.
"""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass

from store.webhooks.outbox import Delivery

MAX_REMEMBERED = 10_000


class ReceiverQueues:
    """Deliveries in hand, one lane per receiver. Tenants are served in turn, and each tenant's receivers in turn.

        tenant 1  ┬ lane A:  waiting … │ running ≤ max_running ┐
                  └ lane B:  …                                 ┴ running ≤ max_of_tenant
        tenant 2  ─ lane C:  …

    While ``max_together`` run, only a tenant of which none runs is served: tenants with many slow receivers leave
    senders to others, however many of such tenants there are. A lane exists only while it holds something. It is full,
    and should be given no more, while it has as many waiting as may run at once; so is a tenant.
    """

    def __init__(self, *, max_running: int, max_of_tenant: int, max_together: int) -> None:
        self._max_running = max_running
        self._max_of_tenant = max_of_tenant
        self._max_together = max_together
        # By tenant, then by receiver; in both the one that was served longest ago comes first.
        self._waiting: OrderedDict[str, OrderedDict[str, deque[Delivery]]] = OrderedDict()
        self._running: Counter[str] = Counter()
        self._tenants_waiting: Counter[str] = Counter()
        self._tenants_running: Counter[str] = Counter()

    @property
    def num_waiting(self) -> int:
        """How many deliveries are in hand and not being sent."""
        return self._tenants_waiting.total()

    def full(self) -> frozenset[str]:
        """Return the receivers who need no more for now."""
        lanes = (named for of_tenant in self._waiting.values() for named in of_tenant.items())
        return frozenset(name for name, lane in lanes if len(lane) >= self._max_running)

    def full_tenants(self) -> frozenset[str]:
        """Return the tenants who need no more for now."""
        return frozenset(name for name, count in self._tenants_waiting.items() if count >= self._max_of_tenant)

    def add(self, delivery: Delivery) -> None:
        """Take a delivery in hand."""
        of_tenant = self._waiting.setdefault(delivery.tenant_id, OrderedDict())
        of_tenant.setdefault(delivery.receiver, deque()).append(delivery)
        self._tenants_waiting[delivery.tenant_id] += 1

    def next(self) -> Delivery | None:
        """Start the next delivery: of the tenant, and there of the receiver, that was served longest ago and may have
        one more; None if there is none."""
        for tenant in self._waiting:
            if self._may_have_more(tenant) and (delivery := self._next_of(tenant)) is not None:
                self._waiting.move_to_end(tenant)
                self._take_out(delivery)
                self._running[delivery.receiver] += 1
                self._tenants_running[tenant] += 1
                return delivery
        return None

    def _may_have_more(self, tenant: str) -> bool:
        running = self._tenants_running[tenant]
        has_turn = running == 0 or self._tenants_running.total() < self._max_together
        return has_turn and running < self._max_of_tenant

    def _next_of(self, tenant: str) -> Delivery | None:
        of_tenant = self._waiting[tenant]
        for receiver, lane in of_tenant.items():
            if self._running[receiver] < self._max_running:
                of_tenant.move_to_end(receiver)
                return lane[0]
        return None

    def _take_out(self, delivery: Delivery) -> None:
        of_tenant = self._waiting[delivery.tenant_id]
        of_tenant[delivery.receiver].popleft()
        _decrease(self._tenants_waiting, delivery.tenant_id)
        if not of_tenant[delivery.receiver]:
            del of_tenant[delivery.receiver]
        if not of_tenant:
            del self._waiting[delivery.tenant_id]

    def done(self, delivery: Delivery) -> None:
        """End a delivery that ``next`` started."""
        _decrease(self._running, delivery.receiver)
        _decrease(self._tenants_running, delivery.tenant_id)

    def drop(self, receiver: str | None = None) -> list[Delivery]:
        """Give up what waits for one receiver, or for all, and return it."""
        lanes = [named for of_tenant in self._waiting.values() for named in of_tenant.items()]
        dropped = [delivery for name, lane in lanes if receiver in (None, name) for delivery in lane]
        for delivery in dropped:
            self._take_out(delivery)
        return dropped


def _decrease(counts: Counter[str], name: str) -> None:
    """Count one less; who has none is forgotten."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


@dataclass(slots=True)
class _Trouble:
    num_failures: int = 0
    until: float = 0.0


class ReceiverBreaker:
    """Leaves a receiver alone that failed to answer several times in a row, or says that it is overloaded.

    Longer each time. Times are seconds of the caller's clock.
    """

    def __init__(self, *, threshold: int = 3, first_s: float = 5.0, longest_s: float = 300.0) -> None:
        self._threshold = threshold
        self._first_s = first_s
        self._longest_s = longest_s
        self._troubles: OrderedDict[str, _Trouble] = OrderedDict()

    def blocked_for_s(self, receiver: str, now: float) -> float:
        """Return how long to leave the receiver alone; 0 if it may be called."""
        trouble = self._troubles.get(receiver)
        return max(trouble.until - now, 0.0) if trouble else 0.0

    def blocked(self, now: float) -> frozenset[str]:
        """Return the receivers to be left alone now."""
        return frozenset(name for name, trouble in self._troubles.items() if trouble.until > now)

    def answered(self, receiver: str) -> None:
        """Forget the failures: it answers."""
        self._troubles.pop(receiver, None)

    def failed(self, receiver: str, now: float) -> None:
        """Count a call that got no answer."""
        trouble = self._remember(receiver)
        trouble.num_failures += 1
        self._pause(trouble, now)

    def overloaded(self, receiver: str, now: float) -> None:
        """Slow down at the first word."""
        trouble = self._remember(receiver)
        trouble.num_failures = max(trouble.num_failures + 1, self._threshold)
        self._pause(trouble, now)

    def _pause(self, trouble: _Trouble, now: float) -> None:
        if (excess := trouble.num_failures - self._threshold) >= 0:
            trouble.until = now + min(self._first_s * 2 ** min(excess, 16), self._longest_s)

    def asked_to_wait(self, receiver: str, now: float, wait_s: float) -> None:
        """Do as a Retry-After says, up to the longest pause."""
        trouble = self._remember(receiver)
        trouble.until = max(trouble.until, now + min(wait_s, self._longest_s))

    def _remember(self, receiver: str) -> _Trouble:
        trouble = self._troubles.setdefault(receiver, _Trouble())
        self._troubles.move_to_end(receiver)
        if len(self._troubles) > MAX_REMEMBERED:
            self._troubles.popitem(last=False)
        return trouble
