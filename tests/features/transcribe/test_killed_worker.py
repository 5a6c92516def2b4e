"""x"""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.models.tiny_whisper import RATE, WINDOW_S, build_whisper
from tests.producer_api.calling import parse
from tests.producer_api.serving import serving
from tests.signals import audio_file, spoken
from tests.workers.conftest import Bench, Duties, StartWorker
from tests.workers.test_continuing import Reader

URL = "/v1/audio/transcriptions"


NUM_TONES = 11


@pytest.fixture
def version(db: Database, tmp_path: Path) -> ModelVersion:
    return register(db, "ears", str(build_whisper(tmp_path / "model")), "float32", actor="tests")


@pytest.fixture
def api(bench: Bench, settings: Settings) -> Iterator[httpx2.Client]:
    key = api_keys.create_key(bench.db, bench.tenant_id, "all", api_keys.SCOPES - {"admin"}, actor="tests")
    with serving(settings) as server:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=server.url, headers=headers, timeout=100) as client:
            yield client


@pytest.mark.full
def test_a_killed_worker_leaves_no_gap_in_a_transcript(
    bench: Bench, duties: Duties, api: httpx2.Client, start_worker: StartWorker
) -> None:
    audio = audio_file(spoken([WINDOW_S - 0.5] * NUM_TONES, RATE), RATE, kind="FLAC")
    files = {"file": ("tones.flac", audio)}
    uploaded = api.post("/v1/files", files=files, data={"purpose": "user_data"}).json()
    body = {"task": "transcribe", "model": "ears", "input": {"file_id": uploaded["id"]}}
    job_id = api.post("/v1/jobs", json=body).json()["id"]
    reader = Reader().read(api, "GET", f"/v1/jobs/{job_id}/events")
    sizes = {"model": "ears", "transcribe_chunks": 1, "torch_threads": 1}
    # It dies as soon as a delta is in Redis.
    worker = start_worker(environment="test", failpoints="stream.published=kill", ready=False, **sizes)
    worker.wait_exit(180)
    bench.end_leases()
    second = start_worker(**sizes)
    events = parse(reader.rest())
    deltas = [event for event in events if event.name == "job.delta"]
    assert [event.name for event in events] == [
        "job.queued",
        "job.started",
        *["job.delta"] * len(deltas),
        "job.succeeded",
    ]
    assert [int(event.id.split("-")[1]) for event in deltas] == list(range(1, len(deltas) + 1))
    job = bench.job(job_id)
    output = job.output or {}
    assert (job.state, job.epoch > 1) == (JobState.SUCCEEDED, True)
    assert "".join(event.data["text"] for event in deltas) == output["text"] != ""
    assert second.events("attempt_resumes")[0]["num_deltas"] >= 1
    assert bench.query("SELECT count(*) AS n FROM job_terminal")[0].n == 1
    whole = api.post(URL, files=files, data={"model": "ears", "response_format": "verbose_json"}).json()
    assert {name: whole[name] for name in ("text", "language", "duration")} == {
        name: output[name] for name in ("text", "language", "duration")
    }
    assert [(one["start"], one["end"], one["text"]) for one in whole["segments"]] == [
        (one["start"], one["end"], one["text"]) for one in output["segments"]
    ]
    starts = [one["start"] for one in output["segments"]]
    assert (starts == sorted(starts), output["segments"][-1]["end"] <= output["duration"]) == (True, True)
