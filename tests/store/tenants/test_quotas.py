"""Limits that are kept exactly: concurrent jobs, queued tokens and a month's cost, by many processes at once."""

import threading
from decimal import Decimal

import pytest
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, QuotaExceeded, RateLimited
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.jobs.jobs import Accepted, Idempotency, accept
from headrace.store.registry.models import register_version
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import quotas
from headrace.store.tenants.quotas import QuotaUsage
from headrace.store.tenants.tenant_limits import Limits, RequestLimits
from headrace.store.tenants.usage import Price, set_price
from tests.refusals import Naming
from tests.store.making import MakeJob

NONE = Limits()


@pytest.fixture
def priced(db: Database) -> None:
    """A version with a price of one per token."""
    register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake",
        digest="0" * 64,
        dtype="float32",
        context_window=512,
        files={},
        actor="tests",
    )
    set_price(db, "tiny", 1, Price(Decimal(10**6), Decimal(10**6), Decimal(10**6)), actor="tests")


def end(db: Database, job_id: str, *, num_input: int, num_output: int) -> None:
    held = claim(db, "w", "tiny@1", [job_id], 30)[job_id]
    usage = {"input_tokens": num_input, "output_tokens": num_output, "cached_tokens": 0}
    finish(db, [Finish(job_id, held.epoch, JobState.SUCCEEDED, {"text": ""}, None, usage, [], ((held.epoch, 0),))])


@pytest.mark.parametrize(
    ("held", "num_fitting"),
    [
        (RequestLimits(Limits(concurrent_jobs=7), NONE), 7),
        (RequestLimits(NONE, Limits(concurrent_jobs=5)), 5),
        (RequestLimits(Limits(concurrent_jobs=9), Limits(concurrent_jobs=6)), 6),
        (RequestLimits(Limits(queued_tokens=120), NONE), 12),
        (RequestLimits(Limits(queued_tokens=1000), Limits(queued_tokens=99)), 9),
        (RequestLimits(Limits(monthly_cost=Decimal(110)), NONE), 11),
        (RequestLimits(Limits(monthly_cost=Decimal(500)), Limits(monthly_cost=Decimal(89))), 8),
        (RequestLimits(Limits(concurrent_jobs=quotas.NEAR_JOBS + 100), NONE), 40),
    ],
)
@pytest.mark.usefixtures("priced")
def test_processes_that_accept_at_once_let_in_what_fits_and_not_one_more(
    settings: Settings, make_job: MakeJob, held: RequestLimits, num_fitting: int
) -> None:
    databases = [Database(settings.database_url, pool_size=1, application_name="tests") for _ in range(4)]
    outcomes: list[object] = []

    def submit(db: Database) -> None:
        for _ in range(5):
            wave = [make_job(input_tokens=4, cost_tokens=10, api_key_id="key_a", limits=held) for _ in range(2)]
            outcomes.extend(accept(db, wave))

    threads = [threading.Thread(target=submit, args=(db,)) for db in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 40
    assert sum(isinstance(outcome, Accepted) for outcome in outcomes) == num_fitting
    for db in databases:
        db.close()


@pytest.mark.usefixtures("priced")
def test_what_is_used_follows_a_jobs_life_whether_it_is_added_up_or_not(
    db: Database, tenant: str, make_job: MakeJob
) -> None:
    jobs = [make_job(input_tokens=4, cost_tokens=10, api_key_id=key) for key in ("key_a", "key_a", "key_b")]
    accept(db, jobs)
    assert quotas.usage_of(db, tenant) == QuotaUsage(3, 30, Decimal(30), Decimal(0))
    quotas.fold(db)
    assert quotas.usage_of(db, tenant, "key_a") == QuotaUsage(2, 20, Decimal(20), Decimal(0))
    claim(db, "w", "tiny@1", [jobs[0].id], 30)
    assert quotas.usage_of(db, tenant, "key_a") == QuotaUsage(2, 10, Decimal(20), Decimal(0)), "it runs: queued no more"
    end(db, jobs[1].id, num_input=4, num_output=3)
    for _ in range(2):
        assert quotas.usage_of(db, tenant, "key_a") == QuotaUsage(1, 0, Decimal(10), Decimal(7)), "it cost what it used"
        assert quotas.usage_of(db, tenant) == QuotaUsage(2, 10, Decimal(20), Decimal(7))
        quotas.fold(db)
    later = make_job(input_tokens=4, cost_tokens=10, api_key_id="key_a")
    accept(db, [later])
    end(db, later.id, num_input=4, num_output=1)
    quotas.fold(db)
    assert quotas.usage_of(db, tenant, "key_a").spent == 7 + 5, "it is added to what was added up before"
    other = make_job(input_tokens=0, cost_tokens=10, api_key_id="key_a", model_version=2, queue="tiny@2")
    gone = make_job(api_key_id="key_c")
    accept(db, [other, gone])
    of_both = QuotaUsage(2, 10, Decimal(10), Decimal(12))
    assert quotas.usage_of(db, tenant, "key_a") == of_both, "a version without a price counts, and costs nothing"
    claim(db, "w", "tiny@2", [other.id], 30)
    end(db, gone.id, num_input=0, num_output=0)
    quotas.fold(db)
    assert [quotas.delete_zero_totals(db) for _ in range(2)] == [1, 0], "what runs is counted, also without a prompt"
    assert quotas.usage_of(db, tenant, "key_a").jobs == 2


@pytest.mark.usefixtures("priced")
def test_a_prompt_is_reserved_at_the_dearer_of_its_two_prices(db: Database, tenant: str, make_job: MakeJob) -> None:
    """Whether it will be found in a cache is not known; the month's cost may not be overshot either way."""
    for price in (Price(Decimal(10**6), Decimal(3 * 10**6), Decimal(10**6)), Price(*map(Decimal, (3e6, 1e6, 1e6)))):
        set_price(db, "tiny", 1, price, actor="tests")
        held = RequestLimits(Limits(monthly_cost=Decimal(18 + 17)), NONE)
        wave = [make_job(input_tokens=4, cost_tokens=10, limits=held) for _ in range(2)]
        fits, refused = accept(db, wave)
        assert isinstance(fits, Accepted)
        assert isinstance(refused, QuotaExceeded)
        assert quotas.usage_of(db, tenant).reserved == Decimal(18)
        end(db, wave[0].id, num_input=0, num_output=0)


@pytest.mark.usefixtures("priced")
def test_a_month_is_over_when_it_is_over(db: Database, tenant: str, make_job: MakeJob) -> None:
    held = RequestLimits(Limits(monthly_cost=Decimal(10)), NONE)
    first, second, third = (make_job(input_tokens=4, cost_tokens=10, limits=held) for _ in range(3))
    accept(db, [first])
    end(db, first.id, num_input=4, num_output=5)
    (refused,) = accept(db, [second])
    assert isinstance(refused, QuotaExceeded)
    assert refused.message == Naming("your organization", "9 of 10 ", " 0 ", "this one 10")
    with db.begin() as connection:
        connection.execute(text("UPDATE spend_changes SET month = month - interval '1 month'"))
    (accepted,) = accept(db, [third])
    assert isinstance(accepted, Accepted)


def test_a_replay_needs_no_room_and_a_job_that_never_fits_is_told_so(db: Database, make_job: MakeJob) -> None:
    held = RequestLimits(Limits(concurrent_jobs=1), Limits(queued_tokens=20))

    def keyed(name: str, **more: object) -> object:
        job = make_job(cost_tokens=10, limits=held, idempotency=Idempotency("r", name, "f"), **more)
        return accept(db, [job])[0]

    first, again, other = keyed("a"), keyed("a"), keyed("b")
    assert isinstance(first, Accepted)
    assert isinstance(again, Accepted)
    assert again.replayed
    assert isinstance(other, RateLimited)
    (refused,) = accept(db, [make_job(cost_tokens=21, limits=RequestLimits(NONE, Limits(queued_tokens=20)))])
    assert isinstance(refused, InvalidRequest)


def test_one_tenants_jobs_are_no_other_tenants(db: Database, other_tenant: str, make_job: MakeJob) -> None:
    held = RequestLimits(Limits(concurrent_jobs=1), NONE)
    ours, theirs, more = make_job(limits=held), make_job(limits=held, tenant_id=other_tenant), make_job(limits=held)
    outcomes = accept(db, [ours, theirs, more])
    assert [isinstance(outcome, Accepted) for outcome in outcomes] == [True, True, False]


def test_changes_are_added_up_in_pieces(db: Database, tenant: str, make_job: MakeJob) -> None:
    for number in range(5):
        accept(db, [make_job(cost_tokens=10, api_key_id=f"key_{number}")])
    assert quotas.fold(db, past=5) == 0, "so few are left to the dispatcher"
    assert [quotas.fold(db, 2) for _ in range(4)] == [2, 2, 1, 0]
    assert quotas.usage_of(db, tenant) == QuotaUsage(5, 50, Decimal(0), Decimal(0))


@pytest.mark.parametrize("amount", ["-0.01", "NaN", "Infinity"])
def test_a_price_is_a_number_from_zero_up(amount: str) -> None:
    zero, wrong = Decimal(0), Decimal(amount)
    assert Price(zero, zero, zero).output == 0
    for amounts in ((wrong, zero, zero), (zero, wrong, zero), (zero, zero, wrong)):
        with pytest.raises(InvalidRequest, match="from 0 up"):
            Price(*amounts)
