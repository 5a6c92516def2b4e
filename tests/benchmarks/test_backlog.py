"""The backlog benchmark checks its bounds for the longer queue."""

from dataclasses import replace

from benchmarks.backlog import REDIS_SLACK_BYTES, Size, missed

SHORT = Size("1,000", 1_000, 5.0, 10.0, 4.0, 8.0, 2_000_000)


def test_twice_as_dear_is_still_held() -> None:
    long = replace(SHORT, submit_p99_ms=20.0, claim_p99_ms=16.0, redis_bytes=SHORT.redis_bytes + REDIS_SLACK_BYTES)
    assert missed(SHORT, long) == []


def test_each_goal_that_is_missed_is_named() -> None:
    worse = {"submit_p99_ms": 20.1, "claim_p99_ms": 16.1, "redis_bytes": SHORT.redis_bytes + REDIS_SLACK_BYTES + 1}
    for name, value in worse.items():
        (line,) = missed(SHORT, replace(SHORT, name="1,000,000", **{name: value}))
        assert line.startswith("1,000,000: ")
        assert name.removesuffix("_bytes") in line.lower()
