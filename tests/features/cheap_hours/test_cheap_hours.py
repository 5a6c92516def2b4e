"""Work that asks for cheap hours: on a server with windows and one without, and the hours themselves."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from headrace.features.cheap_hours.hours import read_hours
from headrace.store.errors import SettingsError
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from tests.producer_api.calling import CHAT, PROMPT, error_of
from tests.producer_api.serving import ApiServer, serving

STEPS = {"steps": [{"name": "one", "model": "tiny", "input": {"prompt": "a"}, "sampling": {"max_tokens": 4}}]}
CHEAP = {"start_after": "cheap"}
HOUR_MS = 3_600_000


@pytest.fixture
def opens() -> datetime:
    """The next whole hour that is at least an hour away, in UTC."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=2)


@pytest.fixture
def server(settings: Settings, model: ModelVersion, opens: datetime) -> Iterator[ApiServer]:
    window = f"{opens:%H}:00-{opens:%H}:30 UTC"
    with serving(settings.model_copy(update={"cheap_hours": (window,)})) as server:
        yield server


@pytest.mark.parametrize("body", [PROMPT, STEPS], ids=["job", "steps"])
def test_a_job_waits_for_the_cheap_hours_within_its_deadline(
    api: httpx2.Client, opens: datetime, body: dict[str, Any]
) -> None:
    at = int(opens.timestamp())
    job = api.post("/v1/jobs", json={**body, **CHEAP, "deadline_ms": 6 * HOUR_MS}).json()
    assert (job["status"], job["start_after"]) == ("queued", at)
    assert abs(job["expires_at"] - job["created_at"] - 6 * 3600) <= 2, "the deadline counts from now"
    without = api.post("/v1/jobs", json={**body, **CHEAP}).json()
    assert (without["start_after"], without["expires_at"]) == (at, at + 3600)
    near = api.post("/v1/jobs", json={**body, **CHEAP, "deadline_ms": HOUR_MS}).json()
    assert near["start_after"] is None, "its deadline comes before the cheap hours"


def test_a_batch_waits_within_its_window(openai: OpenAI, opens: datetime) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    file = openai.files.create(file=("input.jsonl", json.dumps(line).encode()), purpose="batch")
    asked: dict[str, Any] = {"endpoint": "/v1/chat/completions", "input_file_id": file.id, "extra_body": CHEAP}
    made = openai.batches.create(completion_window="24h", **asked)
    assert made.model_extra is not None
    assert made.model_extra["start_after"] == opens.timestamp()
    assert abs((made.expires_at or 0) - made.created_at - 86_400) <= 2
    assert (openai.batches.create(**{**asked, "completion_window": "1h"}).model_extra or {})["start_after"] is None


def test_without_windows_it_is_refused(settings: Settings, model: ModelVersion, key: str) -> None:
    with serving(settings) as server:
        call = httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"})
        with call:
            for body in (PROMPT, STEPS):
                refused = call.post("/v1/jobs", json={**body, **CHEAP})
                assert (refused.status_code, error_of(refused)["param"]) == (400, "start_after")
            wrong = call.post("/v1/jobs", json={**PROMPT, "start_after": "cheaper"})
            assert (wrong.status_code, error_of(wrong)["param"]) == (400, "start_after")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text + "+00:00")


@pytest.mark.parametrize(
    ("now", "hours", "starts"),
    [
        ("2026-12-03T12:00", 24, "2026-12-03T21:00"),
        ("2026-12-03T23:00", 24, None),  # the window of the evening before
        ("2026-12-04T12:00", 8, None),  # 9 hours until it opens
        ("2026-12-05T12:00", 24, None),  # Saturday
        ("2026-07-03T12:00", 24, "2026-07-03T20:00"),  # summer time
    ],
)
def test_the_start_in_windows_over_midnight_and_of_days(now: str, hours: float, starts: str | None) -> None:
    found = read_hours(("22:00-06:00 Europe/Zurich", "SAT-SUN 00:00-24:00 Europe/Zurich"))
    assert found.start(at(now), hours * 3600) == (None if starts is None else at(starts))


@pytest.mark.parametrize("entry", ["22-06 UTC", "22:00-06:00", "22:00-25:00 UTC", "22:00-06:00 Mars", "SOM 1:00"])
def test_a_server_with_wrong_windows_does_not_start(settings: Settings, entry: str) -> None:
    with (
        pytest.raises(SettingsError, match="HEADRACE_CHEAP_HOURS"),
        serving(settings.model_copy(update={"cheap_hours": (entry,)})),
    ):
        pass
