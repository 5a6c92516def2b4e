"""What the commands print of jobs, queues, dead letters, models and webhooks."""

from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from headrace.cli import render


def ago(seconds: float) -> float:
    return datetime.now(UTC).timestamp() - seconds


def stripped(renderable: object) -> list[list[str]]:
    """The cells of a table's rows, as far as they are not empty."""
    console = Console(width=400)
    with console.capture() as captured:
        console.print(renderable)
    lines = captured.get().splitlines()[1:]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


DONE: dict[str, Any] = {
    "id": "job_1",
    "status": "succeeded",
    "model": "tiny",
    "model_version": 3,
    "model_digest": "d" * 64,
    "queue": {"name": "tiny@3", "position": None},
    "created_at": ago(2 * 86_400 + 60),
    "started_at": ago(2 * 86_400),
    "completed_at": ago(90_000),
    "attempt": 2,
    "max_attempts": 4,
    "usage": {"input_tokens": 5, "output_tokens": 7, "queue_ms": 11.2, "first_token_ms": 30.4, "compute_ms": 99.6},
    "output": {"text": "Hello [there]"},
    "error": None,
    "purged_at": None,
}
WAITS: dict[str, Any] = DONE | {
    "status": "queued",
    "queue": {"name": "tiny@3", "position": 4},
    "started_at": None,
    "completed_at": None,
    "attempt": 0,
    "usage": None,
    "output": None,
}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-5, "0 s ago"), (59, "59 s ago"), (61, "1 min ago"), (3661, "1 h ago"), (2 * 86_400 + 60, "2 d ago")],
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, told: str) -> None:
    assert render.ago(ago(seconds)) == told


def test_jobs_one_by_one_and_each_alone() -> None:
    rows = stripped(render.jobs_table([DONE, WAITS]))
    assert rows[0] == ["job_1", "succeeded", "tiny@3", "2 d ago", "5+7", "11 ms", "100 ms"]
    assert rows[1] == ["job_1", "queued", "tiny@3", "2 d ago"]
    assert render.job_facts(DONE).plain.splitlines() == [
        "job         job_1 succeeded",
        "model       tiny@3",
        "created     2 d ago",
        "started     2 d ago",
        "ended       1 d ago",
        "attempt     2 of at most 4",
        "tokens      5 + 7",
        "first token 30 ms",
        "computed    100 ms",
    ]
    failed = WAITS | {"error": {"code": "poison", "message": "it died"}, "purged_at": 1}
    assert render.job_facts(failed).plain.splitlines() == [
        "job         job_1 queued",
        "model       tiny@3",
        "queue       place 4 in tiny@3",
        "created     2 d ago",
        "error       poison: it died",
        "contents    are kept no longer",
    ]
    assert render.summary(DONE) == "job_1 succeeded, 5 + 7 tokens, first token after 30 ms, computed 100 ms"
    assert render.summary(failed) == "job_1 queued, poison: it died"
    plain = DONE | {"usage": {"input_tokens": 1, "output_tokens": 0, "first_token_ms": None, "compute_ms": None}}
    assert render.summary(plain) == "job_1 succeeded, 1 + 0 tokens"
    for reason, is_said in (("length", True), ("stop", False)):
        ended = DONE | {"output": {"text": "a", "finish_reason": reason}}
        assert ["--max-tokens" in said for said in (render.summary(ended), render.job_facts(ended).plain)] == [
            is_said
        ] * 2


def test_queues_with_and_without_a_rate() -> None:
    by_class = {name: {"jobs": jobs} for jobs, name in enumerate(("interactive", "standard", "batch"), 1)}
    queue: dict[str, Any] = {"name": "tiny@1", "workers": 2, "running": 8, "queued": {"jobs": 6}, "by_class": by_class}
    busy = queue | {"oldest_age_s": 3.21, "rate": {"jobs_per_s": 4.56}, "paused_at": ago(120)}
    idle = queue | {"oldest_age_s": None, "rate": None, "paused_at": None}
    new = queue | {"oldest_age_s": 0.0, "rate": {"jobs_per_s": 0}, "paused_at": None}
    assert stripped(render.queues_table([new])) == [["tiny@1", "2", "8", "6", "1/2/3", "0.0 s", "0.0"]]
    assert stripped(render.queues_table([busy, idle])) == [
        ["tiny@1", "2", "8", "6", "1/2/3", "3.2 s", "4.6", "2 min ago"],
        ["tiny@1", "2", "8", "6", "1/2/3"],
    ]


def test_dead_letters_and_models() -> None:
    letter: dict[str, Any] = {"id": "job_1", "queue": "q", "code": "poison", "crashes": 3, "created_at": ago(61)}
    rows = stripped(render.dead_letters_table([letter | {"replayed_as": "job_2"}, letter | {"replayed_as": None}]))
    assert rows == [["job_1", "q", "poison", "3", "1 min ago", "job_2"], ["job_1", "q", "poison", "3", "1 min ago"]]
    assert stripped(render.replays_table([{"id": "job_1", "job_id": "job_2"}])) == [["job_1", "job_2"]]
    models = [{"id": "tiny", "versions": [2, 1], "aliases": {"default": 1, "canary": 2}, "engine": "x"}, {"id": "big"}]
    assert stripped(render.models_table(models)) == [["tiny", "2, 1", "canary → 2, default → 1", "x"], ["big"]]


def test_webhooks_with_their_deliveries_and_tries() -> None:
    endpoint: dict[str, Any] = {"id": "we_1", "url": "https://a.example", "events": ["a", "b"], "disabled_reason": None}
    good = endpoint | {"disabled_at": None, "failing_since": None}
    bad = endpoint | {"disabled_at": ago(61), "disabled_reason": "gone", "failing_since": ago(7200)}
    assert stripped(render.endpoints_table([good, bad])) == [
        ["we_1", "https://a.example", "a, b"],
        ["we_1", "https://a.example", "a, b", "gone, 1 min ago", "2 h ago"],
    ]
    delivery = {
        "id": "evt_1",
        "type": "t",
        "job_id": None,
        "batch_id": None,
        "about_endpoint_id": "we_1",
        "registry_id": None,
    }
    delivery |= {"status": "failed", "attempts": 3, "created_at": ago(61), "last_error": None}
    rows = stripped(
        render.deliveries_table([delivery, delivery | {"batch_id": "batch_1", "last_error": "answered 500"}])
    )
    assert rows[0] == ["evt_1", "t", "we_1", "failed", "3", "1 min ago"]
    assert rows[1] == ["evt_1", "t", "batch_1", "failed", "3", "1 min ago", "answered 500"]
    tried = {"attempt": 1, "at": ago(61), "duration_ms": 12, "status": None, "error": "no answer"}
    assert stripped(render.tries_table([tried, tried | {"status": 200, "error": None}])) == [
        ["1", "1 min ago", "12 ms", "no answer"],
        ["1", "1 min ago", "12 ms", "200"],
    ]


def test_versions_say_what_runs_them_and_how_many_workers() -> None:
    version: dict[str, Any] = {
        "id": "tiny@2",
        "state": "ready",
        "aliases": ["default", "new"],
        "engine": "vllm",
        "base": None,
        "shares_weights": False,
        "dtype": "int8",
        "context_window": 8192,
        "digest": "0123456789abcdef",
        "workers": 0,
        "queued": 3,
        "verification": None,
        "state_reason": None,
        "template": {"id": "pt_1", "name": None, "version": 3},
    }
    lora = version | {"base": "big@1", "workers": None, "template": None, "aliases": []}
    assert stripped(render.versions_table([version, lora, lora | {"shares_weights": True}])) == [
        ["tiny@2", "ready", "default, new", "vllm", "int8", "8,192", "0123456789ab", "0", "3", "pt_1@3"],
        ["tiny@2", "ready", "adapter of big@1", "int8", "8,192", "0123456789ab", "?", "3"],
        ["tiny@2", "ready", "weights of big@1", "int8", "8,192", "0123456789ab", "?", "3"],
    ]
