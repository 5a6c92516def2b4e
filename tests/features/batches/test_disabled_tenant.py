"""The batches of a disabled tenant wait."""

import json

import httpx2
import pytest
from openai import OpenAI
from structlog.testing import capture_logs

from headrace.features.batches import batch_round_robin
from headrace.store.db.database import Database
from headrace.store.tenants import tenants
from tests.processes import wait_for
from tests.producer_api.calling import submit
from tests.producer_api.organization.test_key_routes import remembered
from tests.producer_api.scripted_worker import ScriptedWorker

__all__ = ["remembered"]


@pytest.mark.usefixtures("remembered")
def test_a_disabled_tenants_jobs_go_on_and_its_batches_wait(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The process goes on remembering the key, so that this can look in while the door is closed.
    monkeypatch.setattr(batch_round_robin, "LONGEST_FAILED_S", 0.05)
    job_id = submit(api)
    tenants.set_disabled(db, "acme", disabled=True, actor="tests")
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": "tiny", "prompt": "x"}}
    file = openai.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
    with capture_logs() as logs:
        made = openai.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        wait_for(lambda: "batch_waits" in [one["event"] for one in logs], "the keeper has put the batch off")
    worker.succeed(worker.claim(job_id))
    assert api.get(f"/v1/jobs/{job_id}").json()["status"] == "succeeded"
    assert openai.batches.retrieve(made.id).status == "validating"
    tenants.set_disabled(db, "acme", disabled=False, actor="tests")
    with worker.serve(lambda _: ["done"]):
        wait_for(lambda: openai.batches.retrieve(made.id).status == "completed", "the batch goes on")
