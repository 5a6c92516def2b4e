"""What follows from a snapshot of the queued jobs: loads, waits and rates. Pure, without a database."""

from dataclasses import replace
from datetime import UTC, datetime

from headrace.store.scheduling.backlog import Backlog, Load, RecentMaximum, TenantBacklog
from headrace.store.scheduling.service_rate import HALF_LIFE_S, Interval, Rate, RateMeter
from headrace.store.schema.job_states import UNSERVED_QUEUE

AT = datetime(2026, 1, 1, tzinfo=UTC)


def share(queue: str, tenant_id: str, rank: int, queued: Load, announced: Load = Load()) -> TenantBacklog:  # noqa: B008 - it is immutable
    return TenantBacklog(queue, tenant_id, rank, queued, announced)


BACKLOG = Backlog(
    shares=(
        share("a@1", "one", 1, Load(10, 1000), Load(2, 200)),
        share("a@1", "two", 1, Load(4, 800), Load(1, 100)),
        share("a@1", "two", 0, Load(3, 30)),
        share("a@1", "one", 2, Load(5, 5000)),
        share("b@1", "two", 1, Load(7, 70)),
        share(UNSERVED_QUEUE, "one", 1, Load(9, 90)),
    ),
    rates={"a@1": Rate(2.0, 100.0), "b@1": Rate(1.0, 10.0), "c@1": Rate(5.0, 0.0)},
    paused=frozenset(),
    at=AT,
)


def test_loads_are_summed_by_queue_and_by_tenant() -> None:
    assert BACKLOG.queued() == Load(38, 6990)
    assert BACKLOG.queued(queue="a@1") == Load(22, 6830)
    assert BACKLOG.queued(tenant_id="two") == Load(14, 900)
    assert BACKLOG.queued(queue="a@1", tenant_id="one") == Load(15, 6000)
    assert [one.queue for one in BACKLOG.computed] == ["a@1"] * 4 + ["b@1"]
    assert BACKLOG.shares_of("a@1", "one") == [BACKLOG.shares[0], BACKLOG.shares[3]]
    assert BACKLOG.shares[0].waiting == Load(8, 800)


def test_a_part_of_a_load_has_jobs_in_proportion() -> None:
    assert Load(10, 1000).first_tokens(1000) == Load(10, 1000)
    assert Load(10, 1000).first_tokens(999) == Load(9, 999)
    assert Load(10, 1000).first_tokens(0) == Load(0, 0)
    assert Load().first_tokens(0) == Load()


def test_ahead_are_the_window_the_better_classes_and_as_many_tokens_of_each_other_tenant() -> None:
    window, own = Load(3, 300), Load(2, 350)
    assert BACKLOG.ahead("a@1", 1, "one", own) == window + Load(3, 30) + own + Load(1, 350)
    assert BACKLOG.ahead("a@1", 0, "one", Load()) == window
    assert BACKLOG.ahead("a@1", 2, "two", Load()) == window + Load(3, 30) + Load(8, 800) + Load(3, 700)
    assert BACKLOG.ahead("b@1", 1, "two", Load(1, 10)) == Load(1, 10)


def test_a_wait_is_known_with_a_rate_that_serves_tokens() -> None:
    assert BACKLOG.wait_s("a@1", Load(1, 250)) == 2.5
    assert BACKLOG.wait_s("c@1", Load(1, 250)) is None
    assert BACKLOG.wait_s("d@1", Load(1, 250)) is None
    assert replace(BACKLOG, paused=frozenset({"a@1"})).wait_s("a@1", Load(1, 250)) is None


def test_a_tenant_drains_by_its_share_of_the_queues_in_which_it_waits() -> None:
    assert BACKLOG.drain_rate() == Rate(8.0, 110.0)
    assert BACKLOG.drain_rate(tenant_id="two") == Rate(2.0, 60.0)
    assert BACKLOG.drain_rate(tenant_id="one") == Rate(1.0, 50.0)
    assert BACKLOG.drain_rate(tenant_id="three") is None
    paused = replace(BACKLOG, paused=frozenset({"a@1", "c@1"}))
    assert paused.drain_rate() == Rate(1.0, 10.0)
    assert paused.drain_rate(tenant_id="one") is None


def test_a_measurement_has_half_its_weight_after_the_half_life() -> None:
    meter = RateMeter(at=0.0)
    meter.observe(Interval(HALF_LIFE_S, num_before=99, num_left=30, started_jobs=30, started_tokens=300))
    meter.observe(Interval(2 * HALF_LIFE_S, num_before=99, num_left=90, started_jobs=90, started_tokens=900))
    # Half of the first 15 s with 30 jobs, and all of the second 15 s with 90.
    assert meter.rate() == Rate(jobs_per_s=105 / 22.5, tokens_per_s=1050 / 22.5)
    assert meter.rate(known_after_s=22.6) is None


def test_a_clock_that_went_back_is_waited_for() -> None:
    meter = RateMeter(at=10.0)
    assert not meter.observe(Interval(4.0, num_before=99, num_left=3, started_jobs=3, started_tokens=30))
    assert meter.observe(Interval(12.0, num_before=99, num_left=4, started_jobs=4, started_tokens=40))
    assert meter.rate() == Rate(jobs_per_s=2.0, tokens_per_s=20.0)


def test_the_most_that_ran_in_the_last_second_is_kept_for_each_queue() -> None:
    now = 5.0
    recent = RecentMaximum(clock=lambda: now)
    assert [recent.running("a@1", running) for running in (4, 1, 0)] == [4, 4, 4]
    assert recent.running("b@1", 2) == 2
    now += 0.9
    assert [recent.running("a@1", running) for running in (4, 3)] == [4, 4], "seen again"
    now += 0.9
    assert recent.running("a@1", 3) == 4
    now += 0.1
    assert (recent.running("a@1", 3), recent.running("a@1", 1)) == (3, 3)
