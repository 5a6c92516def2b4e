"""Fairness between webhook receivers: chooses the next delivery.

Pure bookkeeping with the clock passed in: nothing is sent or stored here. A receiver is an endpoint; for the URL of a
job it is the tenant's host and port. A slow or dead receiver uses a few sender threads at most, and soon none.
"""

from collections import Counter, OrderedDict, deque

from cachetools import FIFOCache

from headrace.features.webhooks.outbox import Delivery

MAX_REMEMBERED = 10_000

SLOW_S = 1.0
"""A delivery that has been running for so long is slow, and so is its tenant."""
SLOW_FOR_S = 120.0
"""A tenant counts as slow for so long after the end of its last slow delivery."""


class ReceiverQueues:
    """One queue of taken deliveries per receiver. Tenants are served round-robin, and each tenant's receivers too.

        tenant 1  ┬ queue A:  waiting … │ running ≤ max_running ┐
                  └ queue B:  …                                 ┴ running ≤ max_of_tenant
        tenant 2  ─ queue C:  …

    While ``max_together`` deliveries run, only tenants without a running one are served, so tenants with many slow
    receivers leave threads to others. Slow deliveries have ``max_slow`` threads of their own: those that turn out to be
    slow do not count any more, and tenants known as slow start there alone. So a stranger does not wait for them,
    however many tenants are slow. Times are seconds of the caller's clock.

    A queue exists only while it has deliveries. It is full, and should get no more, while it has as many waiting as may
    run at once; the same holds for a tenant.
    """

    def __init__(self, *, max_running: int, max_of_tenant: int, max_together: int, max_slow: int = 0) -> None:
        self._max_slow = max_slow
        # Running deliveries: since when, and whether their tenants were known as slow.
        self._began: dict[Delivery, tuple[float, bool]] = {}
        self._slow_until: FIFOCache[str, float] = FIFOCache(MAX_REMEMBERED)
        self._max_running = max_running
        self._max_of_tenant = max_of_tenant
        self._max_together = max_together
        # By tenant, then by receiver; the one that was served longest ago comes first.
        self._waiting: OrderedDict[str, OrderedDict[str, deque[Delivery]]] = OrderedDict()
        self._running: Counter[str] = Counter()
        self._tenants_waiting: Counter[str] = Counter()
        self._tenants_running: Counter[str] = Counter()

    @property
    def num_waiting(self) -> int:
        """Deliveries that were taken and are not being sent."""
        return self._tenants_waiting.total()

    def full(self) -> frozenset[str]:
        """Return the receivers with a full queue."""
        queues = (named for of_tenant in self._waiting.values() for named in of_tenant.items())
        return frozenset(name for name, queue in queues if len(queue) >= self._max_running)

    def full_tenants(self) -> frozenset[str]:
        """Return the tenants with enough waiting deliveries."""
        return frozenset(name for name, count in self._tenants_waiting.items() if count >= self._max_of_tenant)

    def add(self, delivery: Delivery) -> None:
        """Add a delivery."""
        of_tenant = self._waiting.setdefault(delivery.tenant_id, OrderedDict())
        of_tenant.setdefault(delivery.receiver, deque()).append(delivery)
        self._tenants_waiting[delivery.tenant_id] += 1

    def next(self, now: float = 0.0) -> Delivery | None:
        """Start and return the next delivery: of the tenant, and there of the receiver, that was served longest ago.

        None if no tenant and receiver may have one more.
        """
        num_slow = sum(is_known or now - began > SLOW_S for began, is_known in self._began.values())
        for tenant in self._waiting:
            if self._may_have_more(tenant, num_slow, now) and (delivery := self._next_of(tenant)) is not None:
                self._waiting.move_to_end(tenant)
                self._take_out(delivery)
                self._running[delivery.receiver] += 1
                self._tenants_running[tenant] += 1
                self._began[delivery] = now, self._is_slow(tenant, now)
                return delivery
        return None

    def _may_have_more(self, tenant: str, num_slow: int, now: float) -> bool:
        running = self._tenants_running[tenant]
        if self._is_slow(tenant, now):
            has_turn = num_slow < self._max_slow and (running == 0 or num_slow < self._max_slow // 2)
        else:
            num_quick = self._tenants_running.total() - min(num_slow, self._max_slow)
            has_turn = running == 0 or num_quick < self._max_together
        return has_turn and running < self._max_of_tenant

    def _is_slow(self, tenant: str, now: float) -> bool:
        return self._max_slow > 0 and self._slow_until.get(tenant, now) > now

    def _next_of(self, tenant: str) -> Delivery | None:
        of_tenant = self._waiting[tenant]
        for receiver, queue in of_tenant.items():
            if self._running[receiver] < self._max_running:
                of_tenant.move_to_end(receiver)
                return queue[0]
        return None

    def _take_out(self, delivery: Delivery) -> None:
        of_tenant = self._waiting[delivery.tenant_id]
        of_tenant[delivery.receiver].popleft()
        _decrease(self._tenants_waiting, delivery.tenant_id)
        if not of_tenant[delivery.receiver]:
            del of_tenant[delivery.receiver]
        if not of_tenant:
            del self._waiting[delivery.tenant_id]

    def done(self, delivery: Delivery, now: float = 0.0) -> None:
        """Note the end of a delivery that ``next`` started."""
        began, _ = self._began.pop(delivery, (now, False))
        if now - began > SLOW_S:
            self._slow_until[delivery.tenant_id] = now + SLOW_FOR_S
        _decrease(self._running, delivery.receiver)
        _decrease(self._tenants_running, delivery.tenant_id)

    def drop(self, receiver: str | None = None) -> list[Delivery]:
        """Remove and return the waiting deliveries of one receiver, or of all."""
        queues = [named for of_tenant in self._waiting.values() for named in of_tenant.items()]
        dropped = [delivery for name, queue in queues if receiver in (None, name) for delivery in queue]
        for delivery in dropped:
            self._take_out(delivery)
        return dropped


def _decrease(counts: Counter[str], name: str) -> None:
    """Count one less; a count of 0 is removed."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
