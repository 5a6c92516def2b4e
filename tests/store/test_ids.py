"""Ids sort by the time at which they were made."""

from datetime import UTC, datetime, timedelta

from headrace.store.ids import first_id, new_id


def test_ids_sort_by_their_time() -> None:
    at = datetime.now(UTC)
    made = new_id("job")
    assert (made[:4], len(made)) == ("job_", 36)
    assert first_id("job", at - timedelta(seconds=1)) < made < first_id("job", datetime.now(UTC) + timedelta(seconds=1))
    assert first_id("job", datetime(2026, 11, 29, tzinfo=UTC)) == "job_01a22499f800"
    assert first_id("job", datetime(1900, 1, 1, tzinfo=UTC)) == "job_000000000000"
