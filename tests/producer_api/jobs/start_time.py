"""The time at which the objects of tests of views begin."""

from datetime import UTC, datetime, timedelta

START = datetime.fromtimestamp(1_800_000_000, UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)
