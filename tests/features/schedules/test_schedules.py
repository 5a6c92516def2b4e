"""Schedules on a server with a scripted worker: runs, pauses, overlaps, outages, and a keeper that dies."""

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import text
from typer.testing import CliRunner

from headrace.cli.tree import app
from headrace.features.schedules.ticks import Missed, due_tick, following
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from tests.processes import StartProcess, wait_for
from tests.producer_api.calling import CHAT, PROMPT, error_of
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer, environment, start_api, url_of

STEPS = {"steps": [{"name": "one", "model": "tiny", "input": {"prompt": "a"}, "sampling": {"max_tokens": 4}}]}

OF_PIPELINE = {"pipeline": "digest", "input": {}}


def create(api: httpx2.Client, **changes: Any) -> dict[str, Any]:
    body = {"name": "often", "cron": "0 6 * * *", "zone": "Europe/Zurich", "job": PROMPT, **changes}
    made = api.post("/v1/schedules", json={name: value for name, value in body.items() if value is not None})
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


def show(api: httpx2.Client) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/v1/schedules/often").json()
    return found


def make_due(db: Database, ago: str = "1 s") -> None:
    with db.begin() as connection:
        connection.execute(text(f"UPDATE schedules SET next_at = date_trunc('second', now()) - interval '{ago}'"))


def runs(api: httpx2.Client, schedule: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get("/v1/jobs", params={"metadata[schedule_id]": schedule["id"]}).json()["data"]
    return found


@pytest.mark.parametrize("job", [PROMPT, STEPS, OF_PIPELINE], ids=["job", "steps", "pipeline"])
def test_each_run_is_a_job_with_the_id_of_its_schedule(
    api: httpx2.Client, db: Database, worker: ScriptedWorker, job: dict[str, Any]
) -> None:
    pipeline = {"name": "digest", "input_schema": {"type": "object"}, **STEPS}
    assert api.post("/v1/pipelines", json=pipeline).status_code == 201
    made = create(api, job={**job, "metadata": {"k": "v"}})
    assert datetime.fromtimestamp(made["next_at"], ZoneInfo("Europe/Zurich")).hour == 6
    make_due(db)
    with worker.serve(lambda _: ["done"]):
        (run,) = wait_for(lambda: [one for one in runs(api, made) if one["status"] == "succeeded"])
    shown = show(api)
    assert (shown["last_run_id"], shown["num_runs"], shown["next_at"]) == (run["id"], 1, made["next_at"])
    assert run["metadata"]["k"] == "v"
    assert run["metadata"]["scheduled_at"] == str(shown["last_at"])


def test_a_run_can_be_a_batch(openai: OpenAI, api: httpx2.Client, db: Database, worker: ScriptedWorker) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    file = openai.files.create(file=("input.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = create(api, job=None, batch=batch)
    make_due(db)
    run_id = wait_for(lambda: show(api)["last_run_id"])
    with worker.serve(lambda _: ["done"]):
        wait_for(lambda: openai.batches.retrieve(run_id).status == "completed")
    assert (openai.batches.retrieve(run_id).metadata or {})["schedule_id"] == made["id"]


def test_one_run_at_a_time_unless_they_may_overlap(api: httpx2.Client, db: Database, worker: ScriptedWorker) -> None:
    made = create(api, missed="skip")
    make_due(db)
    first = wait_for(lambda: show(api)["last_run_id"])
    make_due(db)
    wait_for(lambda: show(api)["num_skipped"] == 1)
    assert [one["id"] for one in runs(api, made)] == [first]
    with worker.serve(lambda _: ["done"]):
        wait_for(lambda: api.get(f"/v1/jobs/{first}").json()["status"] == "succeeded")
    make_due(db)
    wait_for(lambda: len(runs(api, made)) == 2)


def test_a_pause_begins_no_runs(api: httpx2.Client, db: Database) -> None:
    made = create(api)
    assert api.post("/v1/schedules/often/pause").json()["status"] == "paused"
    resumed = api.post(f"/v1/schedules/{made['id']}/resume").json()
    assert (resumed["status"], resumed["next_at"]) == ("active", made["next_at"])
    assert api.delete("/v1/schedules/often").json()["deleted"]
    assert api.get("/v1/schedules").json()["data"] == []


def test_a_killed_keeper_leaves_each_missed_tick_one_run(
    settings: Settings, model: ModelVersion, key: str, db: Database, start_process: StartProcess
) -> None:
    """The process dies when it has stored the second of three runs; another one takes over."""
    dying = {"HEADRACE_ENVIRONMENT": "test", "HEADRACE_FAILPOINTS": "schedules.run_stored=kill@2"}
    first = start_api(start_process, environment(settings, **dying))
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=url_of(first), headers=headers, timeout=60) as api:
        made = create(api, cron="0 * * * *", missed="all", overlap=True)
    with db.begin() as connection:
        due_at = "SELECT extract(epoch FROM date_trunc('hour', now()))::bigint"
        hour = connection.execute(text(due_at)).scalar_one()
        connection.execute(text("UPDATE schedules SET next_at = date_trunc('hour', now()) - interval '2 h'"))
    assert first.wait_exit() == -signal.SIGKILL
    second = start_api(start_process, environment(settings))
    with httpx2.Client(base_url=url_of(second), headers=headers, timeout=60) as api:
        wait_for(lambda: show(api)["next_at"] > hour)
        ticks = sorted(int(one["metadata"]["scheduled_at"]) for one in runs(api, made))
        assert (ticks, show(api)["num_runs"]) == ([hour - 7200, hour - 3600, hour], 3)


def test_a_schedule_is_replaced_and_keeps_its_runs_and_its_pause(api: httpx2.Client, db: Database) -> None:
    made = create(api)
    make_due(db)
    run_id = wait_for(lambda: show(api)["last_run_id"])
    body = {"name": "often", "cron": "30 7 * * *", "zone": "UTC", "job": PROMPT | {"priority": 9}}
    changed = api.put("/v1/schedules/often", json=body).json()
    assert (changed["id"], changed["last_run_id"], changed["job"]["priority"]) == (made["id"], run_id, 9)
    assert datetime.fromtimestamp(changed["next_at"], UTC).strftime("%H:%M") == "07:30"
    api.post("/v1/schedules/often/pause")
    assert api.put("/v1/schedules/often", json=body).json()["status"] == "paused"
    for wrong, param in (({"name": "other"}, "name"), ({"cron": "61 * * * *"}, "cron")):
        assert error_of(api.put("/v1/schedules/often", json=body | wrong))["param"] == param


def test_the_commands(server: ApiServer, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_API_URL", server.url)
    monkeypatch.setenv("HEADRACE_API_KEY", key)
    file = tmp_path / "often.json"

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["schedules", *arguments])
        assert done.exit_code == 0, done.exception
        return done.output

    def written(cron: str) -> str:
        file.write_text(json.dumps({"name": "often", "cron": cron, "job": PROMPT}))
        return str(file)

    assert "often is sched_" in said("create", written("0 6 * * *"))
    assert "07:15 UTC" in said("replace", written("15 7 * * *"))
    assert json.loads(said("list", "--json"))[0]["cron"] == "15 7 * * *"
    said("pause", "often")
    assert "paused" in said("list")
    assert "07:15 UTC" in said("resume", "often")
    assert "15 7 * * *" in said("show", "often")
    said("delete", "often")
    assert "no schedules" in said("list")


def test_a_refused_run_is_told_and_the_schedule_goes_on(api: httpx2.Client, db: Database) -> None:
    create(api, job={**STEPS, "steps": [{**STEPS["steps"][0], "model": "gone"}]})
    make_due(db)
    shown = wait_for(lambda: (found := show(api))["last_error"] and found)
    assert (shown["last_error"]["code"], shown["num_runs"], shown["status"]) == ("model_not_found", 0, "active")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"zone": "Mars/Olympus"}, "zone"),
        ({"job": PROMPT | {"start_after": 1}}, "job.start_after"),
        ({"job": PROMPT | {"start_after": "cheap"}}, "start_after"),
    ],
)
def test_what_could_never_run_is_refused(api: httpx2.Client, changes: dict[str, Any], param: str) -> None:
    body = {"name": "often", "cron": "0 6 * * *", "job": PROMPT, **changes}
    refused = api.post("/v1/schedules", json=body)
    assert (refused.status_code, error_of(refused)["param"]) == (400, param)


def test_another_tenant_sees_no_schedule(api: httpx2.Client, make_client: Any, other_key: str) -> None:
    made = create(api)
    other = make_client(other_key)
    assert other.get(f"/v1/schedules/{made['id']}").status_code == 404
    assert other.get("/v1/schedules").json()["data"] == []


def day(*of: int) -> datetime:
    return datetime(*of, tzinfo=ZoneInfo("Europe/Zurich")).astimezone(UTC)  # type: ignore[arg-type]  # as date's


def test_changes_of_the_clock_leave_one_run_a_day() -> None:
    at = day(2027, 3, 27, 0)
    spring = [at := following("30 2 * * *", "Europe/Zurich", at) or at for _ in range(3)]
    # On the 28th there is no 2:30: it runs once the clock has gone from 2:00 to 3:00.
    assert spring == [day(2027, 3, 27, 2, 30), day(2027, 3, 28, 3), day(2027, 3, 29, 2, 30)]
    at = day(2027, 10, 30, 12)
    autumn = [at := following("30 2 * * *", "Europe/Zurich", at) or at for _ in range(2)]
    assert autumn == [day(2027, 10, 31, 2, 30), day(2027, 11, 1, 2, 30)]


@pytest.mark.parametrize(
    ("missed", "expected"), [(Missed.ALL, (0, 0, True)), (Missed.LAST, (3, 3, True)), (Missed.SKIP, (3, 3, False))]
)
def test_ticks_of_an_outage_run_as_the_schedule_says(missed: Missed, expected: tuple[int, int, bool]) -> None:
    first = datetime(2027, 1, 1, tzinfo=UTC)
    tick, skipped, runs_now = due_tick("0 * * * *", "UTC", missed, first, first + timedelta(hours=3, minutes=30))
    hours, num, expected_run = expected
    assert (tick, skipped, runs_now) == (first + timedelta(hours=hours), num, expected_run)
    assert due_tick("0 * * * *", "UTC", missed, first, first + timedelta(seconds=5)) == (first, 0, True)
