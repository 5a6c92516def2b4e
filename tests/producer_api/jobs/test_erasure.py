"""Forgetting over the API: a job's contents at its owner's word, and how long contents are kept at all."""

import httpx2
import redis
from sqlalchemy import text

from headrace.features.files.blob_storage import open_blobs
from headrace.features.files.files import remove_unreferenced
from headrace.features.retention.retention import Retention, set_retention
from headrace.store import audit_log as audit
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import stream_key
from headrace.store.tenants import api_keys
from headrace.store.tenants.tenant_limits import SetBy
from tests.producer_api.calling import error_of, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker


def test_a_deleted_job_says_nothing_any_more_and_its_row_stays(
    api: httpx2.Client,
    make_client: MakeClient,
    other_key: str,
    worker: ScriptedWorker,
    db: Database,
    tenant: str,
    redis_client: redis.Redis,
) -> None:
    job_id = submit(api, metadata={"order": "42"})
    path = f"/v1/jobs/{job_id}"
    attempt = worker.claim(job_id)
    refused = api.delete(path)
    assert (refused.status_code, error_of(refused)["code"]) == (409, "job_not_ended")
    worker.say(attempt, "xyzzy")
    worker.succeed(attempt)
    assert redis_client.exists(stream_key(job_id))
    assert make_client(other_key).delete(path).status_code == 404
    for _ in range(2):
        assert api.delete(path).json() == {"id": job_id, "object": "job", "deleted": True}
    for gone in (path, f"{path}?wait=1", f"{path}/events"):
        refused = api.get(gone)
        assert (refused.status_code, error_of(refused)["code"]) == (410, "result_expired")
    assert api.post(f"{path}/cancel").status_code == 410
    (row,) = api.get("/v1/jobs").json()["data"]
    assert (row["status"], row["output"], row["metadata"], row["usage"]["output_tokens"]) == ("succeeded", None, {}, 1)
    assert row["purged_at"] >= row["completed_at"]
    assert [event["kind"] for event in api.get(f"{path}/timeline").json()["events"]][-1] == "succeeded"
    assert api.get("/v1/jobs", params={"metadata[order]": "42"}).json()["data"] == []
    assert not redis_client.exists(stream_key(job_id))
    deeds = [entry for entry in audit.list_entries(db, tenant) if entry.action == "job.purged"]
    assert [deed.resource for deed in deeds] == [job_id]


def test_a_tenants_admins_may_keep_contents_for_a_shorter_time_and_not_for_a_longer(
    api: httpx2.Client, make_client: MakeClient, db: Database, tenant: str
) -> None:
    admin = make_client(api_keys.create_key(db, tenant, "admin", ["admin"], actor="tests"))
    path = "/v1/organization/retention"
    set_retention(db, tenant, Retention(outputs_s=3 * 86_400), set_by=SetBy.OPERATOR, actor="tests")
    seen = api.get(path).json()
    assert (seen["id"], seen["retention"]["outputs_days"], seen["own"]["outputs_days"]) == (tenant, 3, None)
    assert seen["retention"]["files_days"] is None
    assert admin.put(path, json={"outputs_days": 0.5, "files_days": 9}).json()["retention"] == {
        "inputs_days": 7,
        "outputs_days": 0.5,
        "deliveries_days": 30,
        "files_days": 9,
    }
    refused = admin.put(path, json={"outputs_days": 4})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "outputs_days")
    for wrong in ({"outputs_days": -1}, {"outputs_days": "1"}, {"results_days": 1}):
        assert admin.put(path, json=wrong).status_code == 400
    assert api.put(path, json={}).status_code == 403
    assert admin.put(path, json={}).json()["retention"]["outputs_days"] == 3


def test_a_deleted_files_bytes_leave_the_storage_unless_another_file_has_them(
    api: httpx2.Client, settings: Settings, db: Database
) -> None:
    def upload() -> str:
        form = {"data": {"purpose": "user_data"}, "files": {"file": ("a.txt", b"xyzzy")}}
        return str(api.post("/v1/files", **form).json()["id"])  # type: ignore[arg-type]

    def stored() -> int:
        with db.begin() as connection:
            connection.execute(text("UPDATE blobs SET touched_at = now() - interval '1 hour'"))
        while remove_unreferenced(db, open_blobs(settings)):
            pass
        files = [path for path in (settings.home / "files").rglob("*") if path.is_file()]
        return sum(b"xyzzy" in path.read_bytes() for path in files)

    first, second = upload(), upload()
    api.delete(f"/v1/files/{first}").raise_for_status()
    assert stored() == 1
    api.delete(f"/v1/files/{second}").raise_for_status()
    assert stored() == 0
