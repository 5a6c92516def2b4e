"""Model hosts over HTTP: who has a place, and what a queue without a worker may expect."""

import httpx2
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.hosts.host_reports import (
    HostEvent,
    HostOutlook,
    HostPlace,
    HostReport,
    PlaceState,
    now,
    write_report,
)
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.processes import wait_for
from tests.producer_api.calling import PROMPT, error_of, num_jobs
from tests.producer_api.conftest import MakeClient
from tests.producer_api.serving import serving
from tests.refusals import Naming

QUEUE = "tiny@1"
GIB = 1 << 30


def host(*outlooks: HostOutlook) -> HostReport:
    place = HostPlace(queue="other@1", state=PlaceState.SERVING, since=now(), memory_bytes=GIB, used_bytes=9, pid=7)
    event = HostEvent(at=now(), queue="old@1", kind="draining", reason="idle for 20 s")
    return HostReport(
        name="m1", started_at=now(), budget_bytes=2 * GIB, places=(place,), events=(event,), outlooks=outlooks
    )


def tell(db: Database, report: HostReport) -> None:
    """Store a report that does not grow old."""
    write_report(db, report)
    with db.begin() as connection:
        connection.execute(text("UPDATE model_hosts SET seen_at = now() + interval '1 hour'"))


def test_hosts_are_listed_for_operators(api: httpx2.Client, db: Database, tenant: str, make_client: MakeClient) -> None:
    assert api.get("/v1/hosts").json() == {"object": "list", "data": []}
    tell(db, host())
    (found,) = api.get("/v1/hosts").json()["data"]
    assert (found["name"], found["needed_bytes"], found["budget_bytes"]) == ("m1", GIB, 2 * GIB)
    assert [(one["queue"], one["state"]) for one in found["places"]] == [("other@1", "serving")]
    assert found["events"][0]["reason"] == "idle for 20 s"
    reader = make_client(api_keys.create_key(db, tenant, "reader", ["jobs:read"], actor="tests"))
    assert reader.get("/v1/hosts").status_code == 403


def test_a_queue_and_a_submission_say_when_a_host_loads_the_model(
    db: Database, settings: Settings, model: ModelVersion, key: str
) -> None:
    settings = settings.model_copy(update={"require_worker": True})
    headers = {"Authorization": f"Bearer {key}"}
    with serving(settings) as server, httpx2.Client(base_url=server.url, headers=headers, timeout=60) as api:
        assert api.get(f"/v1/queues/{QUEUE}").json()["host"] is None
        tell(db, host(HostOutlook(queue=QUEUE, text="it needs about 9 GiB")))
        assert api.get(f"/v1/queues/{QUEUE}").json()["host"] == {
            "loads_in_s": None,
            "reason": "it needs about 9 GiB",
        }

        def refusal() -> str:
            refused = api.post("/v1/jobs", json=PROMPT)
            assert refused.status_code == 503
            return str(error_of(refused)["message"])

        wait_for(lambda: "it needs about 9 GiB" in refusal(), "the API has read the report")
        assert num_jobs(db) == 0
        tell(db, host(HostOutlook(queue=QUEUE, in_s=12.4)))
        assert api.get(f"/v1/queues/{QUEUE}").json()["host"] == {"loads_in_s": 12.4, "reason": None}
        wait_for(lambda: api.post("/v1/jobs", json=PROMPT).status_code == 202, "it is accepted")
        accepted = api.post("/v1/jobs", json=PROMPT)
        assert accepted.headers["headrace-warning"] == Naming("tiny@1", "12 s")
