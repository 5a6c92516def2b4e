"""The rows of the reliability table that need a whole cluster: ``python -m tests.chaos --promise P7``.

Each row injects one kind of fault for long enough to get a figure, with the product's default times where the promise
names them, and uses the same checker as every other run.
"""

import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

import psycopg

from tests.chaos import bystanders, measures, readers
from tests.chaos.checker import Findings, check
from tests.chaos.cluster import SHORT_TIMES, Member, Shape
from tests.chaos.faults import Faults, hold
from tests.chaos.history import Delivery, History
from tests.chaos.load import Order, orders
from tests.chaos.nemesis import Strike
from tests.chaos.report import Json
from tests.chaos.soak import Run, Say, database_of, running, soak


@dataclass(frozen=True)
class Ask:
    """Options of the command line. ``scale`` shortens a row for a first look; published figures need 1."""

    seed: int
    say: Say
    shape: Shape
    scale: float = 1.0


def run_through(run: Run, fault: Iterator[None]) -> None:
    """Run one fault to its end."""
    for _ in fault:
        run.turn()


def faults_of(run: Run) -> Faults:
    """The callback for a run without marked prompts."""
    return Faults(run.cluster, run.seed, _never, lease_s=10.0)


def _never(mark: str) -> Order:
    """No row of this file breaks an engine."""
    raise AssertionError(f"nobody asked for {mark}")


# -- P2: one terminal state, whatever dies ----------------------------------------------------------------------------

DEATHS = (
    "kill_api",
    "kill_worker",
    "kill_dispatcher",
    "pause_api",
    "pause_worker",
    "pause_at_finish",
    "pause_dispatcher",
    "redis_kill",
    "redis_restart",
    "redis_wipe",
    "redis_readonly",
    "postgres_restart",
    "postgres_kill",
)


def p2(ask: Ask) -> tuple[Json, Findings]:
    """2,000 jobs while everything dies."""
    return soak(
        seed=ask.seed, duration_s=160 * ask.scale, rate=13, say=ask.say, faults=DEATHS, shape=ask.shape, name="P2"
    )


# -- P5: recovery is bounded ------------------------------------------------------------------------------------------

LEASE_S, SWEEP_S = 10.0, 2.0
# A kill can follow directly after a lease renewal; the sweep commits soon after its query.
RECOVERY_SLACK_S = 1.5
# The product's default drain time.
HAND_BACK_S = 5.0


def p5(ask: Ask) -> tuple[Json, Findings]:
    """50 kills with the product's own lease, then 20 rolling restarts; users see no error."""
    shape = replace(ask.shape, workers=3, settings={"FAKE_STEP_MS": "20", "STREAM_PING_S": "2"})
    num_kills, num_restarts = max(1, int(50 * ask.scale)), max(1, int(20 * ask.scale))
    rng = random.Random(ask.seed)
    with running("P5", seed=ask.seed, say=ask.say, shape=shape) as run:
        run.let_in(6, some_long(patient(orders(ask.seed))))
        for _ in range(num_kills):
            run.cluster.signal(rng.choice(may_die(run)), signal.SIGKILL)
            run.wait(4)
        run.wait(LEASE_S + SWEEP_S)
        run.cluster.wait_ready()
        run.cluster.journal.write("phase", name="rolling")
        for _ in range(num_restarts):
            for n in (1, 2):
                restart_together(run, [one for one in run.cluster.members if one.name.endswith(f"-{n}")])
        run.cluster.journal.write("phase", name="over")
        history = run.finish()
        findings = check(history, needs_stale=False)
        figures = measures.recovery(history)
        judge(findings, "recovery", figures["kill_to_queue_s"]["max"], LEASE_S + SWEEP_S + RECOVERY_SLACK_S)
        judge(findings, "hand_back", figures["term_to_released_s"]["max"], HAND_BACK_S)
        judge(findings, "charged", figures["charged_without_a_kill"], 0)
        judge(findings, "told_errors", figures["user_errors"], 0)
        return run.report(findings, run="P5", rolling_restarts=num_restarts, **figures), findings


def patient(wanted: Iterator[Order]) -> Iterator[Order]:
    """Load without cancels and deadlines: each failure is a product error."""
    return (replace(one, cancel_after_s=None, deadline_ms=None) for one in wanted)


def some_long(wanted: Iterator[Order]) -> Iterator[Order]:
    """Every fifth job takes eight seconds, longer than a drain, so that a drain has jobs to release."""
    return (replace(one, max_tokens=400, is_endless=True) if one.n % 5 == 0 else one for one in wanted)


_CONDEMNED = "SELECT split_part(owner, ':', 2) FROM jobs WHERE state = 'running' AND crashes >= 2"


def may_die(run: Run) -> list[Member]:
    """Wait for workers that serve and have no job whose workers died twice, and return them.

    A third worker death makes a job poison, whatever the cause, as P6 promises. This row measures how soon a job
    continues.
    """
    while True:
        with psycopg.connect(**database_of(run.cluster)) as connection:
            condemned = {pid for (pid,) in connection.execute(_CONDEMNED)}
        ready = [one for one in run.cluster.of_kind("worker") if run.cluster.is_ready(one)]
        if spared := [one for one in ready if one.child is not None and str(one.child.pid) not in condemned]:
            return spared
        run.wait(0.2)


def restart_together(run: Run, members: list[Member]) -> None:
    """Stop these and wait until all successors serve."""
    before = {one.name: one.child.pid for one in members if one.child is not None}
    for one in members:
        run.cluster.signal(one, signal.SIGTERM)

    def is_new(one: Member) -> bool:
        return one.child is not None and one.child.pid != before.get(one.name) and run.cluster.is_ready(one)

    while not all(is_new(one) for one in members):
        run.wait(0.2)


def judge(findings: Findings, name: str, value: float | None, most: float) -> None:
    """Fail the promise if a figure is missing or above its bound."""
    if value is None:
        findings.violations[name] = ["nothing was measured"]
    elif value > most:
        findings.violations[name] = [f"{value} instead of at most {most}"]


# -- P7: Redis may be away --------------------------------------------------------------------------------------------


def p7(ask: Ask) -> tuple[Json, Findings]:
    """60 s without Redis, then wiped every 5 s, then full, then read-only."""
    outage_s, rest_s = 60 * ask.scale, 20 * ask.scale
    shape = replace(ask.shape, settings={"FAKE_STEP_MS": "10", "STREAM_PING_S": "2"})
    with running("P7", seed=ask.seed, say=ask.say, shape=shape) as run:
        run.let_in(10, patient(orders(ask.seed)))
        hands = faults_of(run)

        def phase(name: str, fault: Iterator[None]) -> None:
            run.cluster.journal.write("phase", name=name)
            run_through(run, fault)

        def wipes() -> Iterator[None]:
            for _ in range(max(1, int(rest_s / 5))):
                yield from hands.carry(Strike(0, "redis_wipe", "redis", 5))

        phase("before", hold(rest_s))
        phase("down", hands.carry(Strike(0, "redis_restart", "redis", outage_s)))
        phase("wiped", wipes())
        phase("full", hands.carry(Strike(0, "redis_full", "redis", rest_s)))
        phase("readonly", hands.carry(Strike(0, "redis_readonly", "redis", rest_s)))
        phase("after", hold(rest_s / 2))
        history = run.finish()
        findings = check(history, needs_kills=False, needs_stale=False)
        figures = measures.phases(history)
        for name in ("down", "wiped", "full", "readonly"):
            if not figures[name]["finished"]:
                findings.violations[f"finished_{name}"] = ["no job finished"]
        return run.report(findings, run="P7", phases=figures), findings


# -- P10: streams -----------------------------------------------------------------------------------------------------


def p10(ask: Ask) -> tuple[Json, Findings]:
    """Streams cut at every event and at random, workers killed meanwhile; then 1,000 readers that disconnect."""
    num_readers = int(1000 * ask.scale)
    with running("P10", seed=ask.seed, say=ask.say, shape=ask.shape) as run:
        load = run.let_in(8, readers.cut_everywhere(ask.seed, count()))
        for _ in range(max(1, int(10 * ask.scale))):
            run.wait(5)
            run.cluster.signal(run.cluster.of_kind("worker")[0], signal.SIGKILL)
        figures = readers.abandon(run, load, num_readers)
        findings = check(run.finish(quiet_s=150), needs_stale=False)
        figures |= measures.streams(run.history)
        for name in ("fds", "subscriptions"):
            judge(findings, f"{name}_left", figures[name]["after"] - figures[name]["before"], readers.SLACK[name])
        judge(findings, "memory_left", figures["memory_mb"]["after"] - figures["memory_mb"]["before"], 32)
        return run.report(findings, run="P10", **figures), findings


# -- P11: webhooks ----------------------------------------------------------------------------------------------------


def p11(ask: Ask) -> tuple[Json, Findings]:
    """Bad receivers beside good ones, and a sender that dies between a receiver's 2xx and its own record of it."""
    killed = {"HEADRACE_FAILPOINTS": "webhook.accepted=kill@40"}
    with running("P11", seed=ask.seed, say=ask.say, shape=ask.shape) as run:
        run.let_in(10, bystanders.with_receivers(ask.seed))
        run.cluster.journal.write("phase", name="good")
        run.wait(30 * ask.scale)
        bystanders.LETS_BAD_IN.set()
        run.cluster.journal.write("phase", name="bad")
        run.wait(40 * ask.scale)
        run.cluster.journal.write("phase", name="killed")
        for member in run.cluster.of_kind("dispatcher"):
            member.extra = killed
            run.cluster.signal(member, signal.SIGKILL)
        run.wait(40 * ask.scale)
        for member in run.cluster.of_kind("dispatcher"):
            member.extra = {}
        history = without_bad(run.finish(quiet_s=40))
        findings = check(history, needs_stale=False)
        figures = measures.hooks(history)
        judge(findings, "others_delayed", figures["p95_ratio"], 2.0)
        judge(findings, "not_delivered", figures["ended"] - figures["delivered"], 0)
        return run.report(findings, run="P11", **figures), findings


def without_bad(history: History) -> History:
    """Deliveries to receivers that never answer well are given up or still retried; no promise covers them."""

    def is_good(one: Delivery) -> bool:
        return one.url.rsplit("/", 1)[-1] in ("ok", "flaky")

    return replace(history, deliveries=[one for one in history.deliveries if is_good(one)])


# -- P13: overload ----------------------------------------------------------------------------------------------------

MEMORY_CEILING_MB = 700
MAX_QUEUED = 200


def p13(ask: Ask) -> tuple[Json, Findings]:
    """Ten times the capacity for a minute: the excess is refused, and all accepted jobs end."""
    settings = {**SHORT_TIMES, "MAX_QUEUED_JOBS": str(MAX_QUEUED), "FAKE_STEP_MS": "10", "MAX_SLOTS": "4"}
    shape = replace(ask.shape, apis=1, workers=1, dispatchers=1, settings=settings)
    with running("P13", seed=ask.seed, say=ask.say, shape=shape) as run:
        before_mb = measures.resident_mb(run.cluster)
        run.let_in(10, unfollowed(orders(ask.seed)), retries_full=False)
        run.wait(15 * ask.scale)
        capacity = measures.finished_per_s(run)
        run.say(f"capacity: {capacity:.1f} jobs/s")
        load = run.load
        assert load is not None
        load.set_rate(10 * capacity)
        peak = measures.peak_memory(run, 60 * ask.scale)
        history = run.finish(quiet_s=120)
        findings = check(history, needs_kills=False, needs_stale=False)
        refused = len(history.of_client("refused"))
        judge(findings, "nothing_refused", -refused, -1)
        judge(findings, "memory", max(peak.values()), MEMORY_CEILING_MB)
        figures: Json = {"capacity_jobs_per_s": round(capacity, 1), "offered": len(history.of_client("order"))}
        figures |= {"resident_mb_before": before_mb, "resident_mb_peak": peak, "codes": measures.refusals(history)}
        return run.report(findings, run="P13", **figures), findings


def unfollowed(wanted: Iterator[Order]) -> Iterator[Order]:
    """Only the submission counts."""
    return (replace(one, follow="forget", hook=None, cancel_after_s=None, deadline_ms=None) for one in wanted)


PROMISES: dict[str, Callable[[Ask], tuple[Json, Findings]]] = {
    "P2": p2,
    "P5": p5,
    "P7": p7,
    "P10": p10,
    "P11": p11,
    "P13": p13,
}
