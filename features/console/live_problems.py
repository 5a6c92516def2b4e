"""What needs attention on the Live page, found in the queues and workers of one moment. No I/O.

The console and ``headrace top`` show the same sentences.
"""

from collections.abc import Container, Iterable, Iterator, Sequence

from headrace.features.console.live_objects import (
    Health,
    LiveProblem,
    LiveQueue,
    LiveWorker,
    ProblemKind,
    TenantLoad,
)

LATE_AFTER_S = 5.0
"""A worker tells what it holds every second. After this time without it, it is late."""

LOST_AFTER_S = 15.0

QUIET_AFTER_S = 15.0
"""A worker that runs requests for so long without a new token is stalled."""

LEASE_SHARE = 0.75
"""A lease is late after this share of its length without a renewal. A healthy worker renews it well before."""

WAITS_S = 5.0
"""Jobs that have waited for less are not mentioned."""

NOT_TAKEN_S = 20.0
"""A standby dispatcher takes over within this time: after it, free slots beside waiting jobs have another cause."""

FLOOD_JOBS = 20
"""A tenant with fewer waiting jobs floods no queue."""

_FULL = 0.95


def health(seen_age_s: float, quiet_s: float | None, lease_age_s: float | None, lease_s: float) -> Health:
    """Return the state of a worker. Ages are seconds."""
    if seen_age_s > LOST_AFTER_S:
        return "lost"
    if quiet_s is not None and quiet_s > QUIET_AFTER_S:
        return "stalled"
    if seen_age_s > LATE_AFTER_S or (lease_age_s is not None and lease_age_s > LEASE_SHARE * lease_s):
        return "late"
    return "ok"


def problems(queues: Iterable[LiveQueue], workers: Sequence[LiveWorker]) -> list[LiveProblem]:
    """Return the problems: those of workers first, then each queue's."""
    served = {worker.queue for worker in workers if worker.health != "lost"}
    found = [problem for worker in workers if (problem := _of_worker(worker, served)) is not None]
    for queue in queues:
        found += _of_queue(queue, [one for one in workers if one.queue == queue.name and one.health != "lost"])
    return found


def _of_worker(worker: LiveWorker, served: Container[str]) -> LiveProblem | None:
    """Return what is wrong with a worker. ``served``: the queues that have a worker which is not lost."""
    about, held = f"worker {_name(worker.id)} of {worker.queue}", _count(len(worker.jobs), "job")
    kind: ProblemKind
    match worker.health:
        case "ok":
            return None
        case "lost":
            fate = "others run them" if worker.queue in served else "they wait, no other worker serves the queue"
            told = f"no heartbeat for {_time(worker.seen_age_s)}. It held {held}{f': {fate}' if worker.jobs else ''}."
            kind = "worker_lost"
        case "stalled":
            kind, told = "worker_stalled", f"no new token for {_time(worker.quiet_s)}. It holds {held}."
        case "late":
            lease = "" if worker.lease_age_s is None else f", leases renewed {_time(worker.lease_age_s)} ago"
            kind, told = "worker_late", f"last heartbeat {_time(worker.seen_age_s)} ago{lease}. It holds {held}."
    return LiveProblem(kind=kind, queue=worker.queue, worker=worker.id, text=f"{about} is {worker.health}: {told}")


def _of_queue(queue: LiveQueue, workers: Sequence[LiveWorker]) -> Iterator[LiveProblem]:
    if not queue.queued.jobs:
        return
    jobs = _count(queue.queued.jobs, "job")
    if (found := _wait_of(queue, workers)) is not None:
        kind, cause = found
        waits = f"{jobs} of {queue.name} {'waits' if queue.queued.jobs == 1 else 'wait'}"
        oldest = "" if queue.oldest_age_s is None else f", the oldest for {_time(queue.oldest_age_s)}"
        clears = kind == "full" and queue.clears_in_s is not None
        told = f"{waits}{oldest}: {cause}.{f' It clears in about {_time(queue.clears_in_s)}.' if clears else ''}"
        yield LiveProblem(kind=kind, queue=queue.name, cause=cause, text=told)
    # A tenant whose jobs wait alone keeps no other tenant waiting.
    if len(queue.tenants) > 1 and _floods(first := queue.tenants[0], queue):
        told = f"tenant {first.name or first.id} has {first.jobs} of the {jobs} that wait in {queue.name}."
        yield LiveProblem(kind="flood", queue=queue.name, text=told)


def _floods(tenant: TenantLoad, queue: LiveQueue) -> bool:
    return tenant.jobs >= FLOOD_JOBS and 2 * tenant.tokens > queue.queued.tokens


def _wait_of(queue: LiveQueue, workers: Sequence[LiveWorker]) -> tuple[ProblemKind, str] | None:
    """Return why the jobs of a queue wait; None: it is not known, or they have just come."""
    if queue.paused_at is not None:
        return "paused", "the queue is paused"
    if queue.workers:
        # A key that sees one tenant's share knows nothing of the workers.
        known = [one for one in workers if one.running is not None]
        return _behind(queue.oldest_age_s or 0.0, known) if known else None
    if queue.host is None:
        return "no_worker", "no worker serves the queue"
    if queue.host.loads_in_s is not None:
        return None
    return "no_worker", f"no worker serves the queue, and no model host starts one: {queue.host.reason}"


def _behind(oldest_age_s: float, workers: Sequence[LiveWorker]) -> tuple[ProblemKind, str] | None:
    """Return why the jobs of a served queue wait. ``oldest_age_s``: how long the oldest has waited, in seconds."""
    if oldest_age_s <= WAITS_S:
        return None
    # A sick worker takes nothing, whatever room it has.
    well = [one for one in workers if one.health == "ok"]
    full = [reason for one in well if (reason := _full(one)) is not None]
    if not well:
        return "no_worker", "none of its workers is well"
    if len(full) == len(well):
        return "full", " and ".join(sorted(set(full)))
    return ("not_taken", "a worker has room, so perhaps no dispatcher runs") if oldest_age_s > NOT_TAKEN_S else None


def _full(worker: LiveWorker) -> str | None:
    if worker.is_reserved:
        return "jobs that lost their worker run alone first"
    # A slot that has just become free is taken at the next look: of few slots one free one is no room.
    if len(worker.jobs) >= min(_FULL * worker.slots, max(worker.slots - 1, 2)):
        return "all slots are taken"
    if worker.free_blocks is not None and worker.total_blocks:
        return "the KV cache is full" if worker.free_blocks <= (1 - _FULL) * worker.total_blocks else None
    return None


def _name(worker_id: str) -> str:
    """Return host and process id of a worker, as the console shows them."""
    host, _, rest = worker_id.partition(":")
    return f"{host.rpartition('@')[2]} · {rest.partition(':')[0]}" if rest else worker_id


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
