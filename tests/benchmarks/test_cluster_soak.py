from benchmarks.cluster_soak.__main__ import followed, outcome
from benchmarks.cluster_soak.growth import growths, unexpected
from tests.chaos.history import History
from tests.chaos.load import orders

_MINUTE_S = 60.0


def samples_of(name: str, values: list[float]) -> list[tuple[float, dict[str, float]]]:
    return [(n * _MINUTE_S, {name: value}) for n, value in enumerate(values)]


def test_growth_after_the_warm_up_is_reported_and_the_warm_up_is_not() -> None:
    warm = [50.0 + 10 * n for n in range(15)]
    assert unexpected(growths(samples_of("memory MiB/api-1", [*warm, *[200.0] * 45]))) == []
    leaking = [100.0 + n for n in range(60)]
    (sentence,) = unexpected(growths(samples_of("memory MiB/api-1", leaking)))
    assert sentence == "memory MiB/api-1 grew from 122.0 to 152.0"


def test_a_table_that_keeps_its_rows_by_design_may_grow() -> None:
    (growth,) = growths(samples_of("table KiB/usage_ledger", [1000.0 * n for n in range(60)]))
    assert not growth.is_flat
    assert unexpected([growth]) == []


def test_an_accepted_job_of_which_no_end_was_seen_is_lost() -> None:
    accepted = [{"kind": "accepted", "job": job} for job in ("a", "b", "c")]
    seen = [{"kind": "seen", "job": job, "status": "succeeded"} for job in ("a", "c")]
    counts = outcome(History(client=[*accepted, *seen]), {})
    assert (counts["accepted"], counts["lost"], counts["ends"]) == (3, 1, {"succeeded": 2})


def test_every_customer_waits_for_the_end() -> None:
    wanted = followed(orders(1))
    assert {next(wanted).follow for _ in range(50)} == {"poll", "stream"}
