"""``headrace show``: the timeline of a job, drawn in a terminal of any width, and read from a real API."""

import re
from datetime import datetime
from typing import Any

import httpx2
import pytest
import redis
from rich.cells import cell_len
from rich.console import Console

from headrace.cli.client.job_timeline import TimelineChart, lanes
from headrace.store.db.database import Database
from headrace.store.registry.models import register_version
from headrace.store.settings import Settings, child_environment
from headrace.store.tenants import api_keys
from tests.cli.terminal import terminal
from tests.producer_api.calling import submit
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import serving


def event(kind: str, at: float, **detail: Any) -> dict[str, Any]:
    return {"kind": kind, "at": at, "epoch": 0, "detail": detail}


def run(start: float, end: float | None, outcome: str | None, first_token_ms: float | None) -> dict[str, Any]:
    return {"started_at": start, "ended_at": end, "outcome": outcome, "first_token_ms": first_token_ms}


def drawn(
    job: Any, timeline: dict[str, Any], deliveries: list[dict[str, Any]], width: int, now: float = 40.0
) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(TimelineChart(lanes(job, timeline, deliveries, now), timeline["events"]))
    return [line.rstrip() for line in captured.get().splitlines()]


LOST: dict[str, Any] = {
    "events": [
        event("queued", 0),
        event("started", 10, worker="celery@mill:7:boot"),
        event("lease_expired", 20),
        event("succeeded", 40),
    ],
    "attempts": [run(10, 20, "lease_expired", None), run(20, 40, "succeeded", 10_000)],
}
TRIES: list[dict[str, Any]] = [{"tries": [{"at": 40, "status": 500}]}]


def test_each_attempt_and_each_webhook_has_a_line() -> None:
    found = drawn({"usage": {"first_token_ms": 15_000}}, LOST, TRIES, 53)
    assert found[:3] == [
        "attempt 1   ░░░░░░░░░░▒▒▒▒▒xxxxx",
        "attempt 2                       ▒▒▒▒▒▒▒▒▒▒██████████",
        "webhook                                            ●",
    ]
    assert found[4].startswith("░ waited  ▒ until the first token  █ decoded  x lost")
    assert (found[6], found[7].split()) == ("", ["time", "after", "event", "detail"])
    assert any("started" in line and "worker mill · 7" in line for line in found)


@pytest.mark.parametrize(
    ("timeline", "lines"),
    [
        ({"events": [event("queued", 0)], "attempts": []}, ["waiting     " + "░" * 40]),
        (
            {"events": [event("queued", 0), event("started", 20)], "attempts": [run(20, None, None, None)]},
            ["attempt 1   " + "░" * 20 + "▓" * 20],
        ),
        (
            {"events": [event("queued", 0), event("cancelled", 40)], "attempts": []},
            ["waiting     " + "░" * 40],
        ),
    ],
)
def test_what_goes_on_is_drawn_up_to_now(timeline: dict[str, Any], lines: list[str]) -> None:
    found = drawn({"usage": None}, timeline, [], 53)
    assert found[: len(lines)] == lines


def test_a_job_that_was_given_back_waits_again_and_each_try_of_a_webhook_has_a_point() -> None:
    at = datetime.fromisoformat("2026-11-29T09:05:07.042").timestamp()
    events = [
        event("queued", at),
        event("started", at + 10, attempt=1),
        event("lease_expired", at + 20, first_token_ms=1.6),
        event("step_finished", at + 22, usage={"input_tokens": 5, "output_tokens": 7, "queue_ms": 1.5}),
    ]
    tries = [{"at": at + 25, "status": 299}, {"at": at + 30, "status": 300}, {"at": at + 35, "status": None}]
    timeline = {"events": events, "attempts": [run(at + 10, at + 20, "released", None)]}
    found = drawn({"usage": None}, timeline, [{"tries": tries}, {"tries": []}], 53, at + 40)
    assert found[:3] == [
        "attempt 1   ░░░░░░░░░░xxxxxxxxxx",
        "waiting" + " " * 25 + "░" * 20,
        "webhook" + " " * 30 + "●    ●    ●",
    ]
    assert [re.sub(r"(?<=\S) {2,}", "  ", line) for line in found[3:]] == [
        " " * 12 + "09:05:07  40 s",
        "░ waited  x given back  ● delivered  ● not delivered",
        "",
        "time  after  event  detail",
        "09:05:07.042  0 ms  queued",
        "09:05:17.042  10 s  started  attempt 1",
        "09:05:27.042  20 s  lease expired  first_token_ms 2",
        "09:05:29.042  22 s  step finished  usage 5 + 7",
        " " * 36 + "tokens",
    ]


def test_a_job_is_shown_with_its_timeline_in_a_narrow_terminal(
    settings: Settings, db: Database, tenant: str, redis_client: redis.Redis
) -> None:
    register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake",
        digest="0" * 64,
        dtype="none",
        context_window=512,
        files={},
        actor="t",
    )
    key = api_keys.create_key(db, tenant, "all", api_keys.SCOPES, actor="tests")
    worker = ScriptedWorker(db, redis_client, "tiny@1")
    with serving(settings) as server:
        with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as api:
            job_id = submit(api)
        attempt = worker.claim(job_id)
        worker.say(attempt, "The answer.")
        worker.succeed(attempt)
        env = child_environment(
            {"HEADRACE_HOME": str(settings.home), "HEADRACE_API_URL": server.url, "HEADRACE_API_KEY": key}
        )
        with terminal("job", job_id, env=env, columns=50) as seen:
            assert seen.wait_exit() == 0
    lines = seen.text.splitlines()
    (bar,) = [line for line in lines if line.startswith("attempt 1 ")]
    assert cell_len(bar) <= 50
    assert {"queued", "started", "succeeded"} <= {word for line in lines for word in line.split()}
    assert lines[-1] == "The answer."
