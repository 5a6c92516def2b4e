"""A key has only so many streams and waits open at once, of whatever kind, and gets its places back."""

import threading
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from headrace.store.db.database import Database
from headrace.store.jobs.jobs import list_jobs
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import authenticate
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits
from tests.cases import of
from tests.processes import wait_for
from tests.producer_api.calling import CHAT, PROMPT, error_of, num_jobs, streaming, submit
from tests.producer_api.serving import serving

RESPONSE = {"model": "tiny", "input": "hi"}
ASKING: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/v1/jobs/{job}/events", None),
    ("GET", "/v1/jobs/{job}?wait=1", None),
    ("GET", "/v1/responses/{response}?stream=true", None),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": "x", "stream": True}),
    ("POST", "/v1/responses", RESPONSE),
    *of("anthropic", ("POST", "/v1/messages", CHAT | {"max_tokens": 8})),
    ("POST", "/v1/responses", RESPONSE | {"background": True, "stream": True}),
    ("POST", "/v1/embeddings", {"model": "tiny", "input": "x"}),
]


@pytest.mark.parametrize("is_of_key", [True, False], ids=["key", "tenant"])
def test_streams_and_waits_are_bounded(
    settings: Settings, model: ModelVersion, db: Database, tenant: str, key: str, other_key: str, is_of_key: bool
) -> None:
    key_id = authenticate(db, key).key_id if is_of_key else None
    set_limits(db, tenant, key_id, Limits(concurrent_streams=3), set_by=SetBy.OPERATOR, actor="tests", request_id=None)
    with ExitStack() as stack:
        server = stack.enter_context(serving(settings))

        def client(of: str) -> httpx2.Client:
            headers = {"Authorization": f"Bearer {of}"}
            return stack.enter_context(httpx2.Client(base_url=server.url, headers=headers, timeout=60))

        api, stranger = client(key), client(other_key)
        job_id = submit(api)
        response_id = api.post("/v1/responses", json=RESPONSE | {"background": True}).json()["id"]
        num_before = num_jobs(db)
        with ExitStack() as streams:
            is_open = [streams.enter_context(streaming(api, job_id)) for _ in range(3)]
            assert [stream.next().name for stream in is_open] == ["job.queued"] * 3
            for method, target, body in ASKING:
                refused = api.request(method, target.format(job=job_id, response=response_id), json=body)
                assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded"), target
                assert refused.headers["Retry-After"] == "1"
            assert num_jobs(db) == num_before
            # What asks for no place gets its answer.
            assert api.get(f"/v1/jobs/{job_id}").status_code == 200
            preferring = api.post("/v1/jobs", json=PROMPT, headers={"Prefer": "wait=30"})
            assert (preferring.status_code, preferring.headers.get("Preference-Applied")) == (202, None)
            with streaming(stranger, submit(stranger)) as other:
                other.next()
        wait_for(lambda: api.get(f"/v1/jobs/{job_id}?wait=0.1").status_code != 429, "a place is free")
        # Waits give their places back as well, and so do requests that were refused.
        waits = [threading.Thread(target=api.get, args=(f"/v1/jobs/{job_id}?wait=0.2",)) for _ in range(3)]
        for _ in range(3):
            assert api.get(f"/v1/jobs/{job_id}?wait=0.05").status_code == 200
            assert api.get("/v1/jobs/job_none/events").status_code == 404
        for thread in waits:
            thread.start()
        for thread in waits:
            thread.join()
        assert api.get(f"/v1/jobs/{job_id}?wait=0.05").status_code == 200
        assert len(list_jobs(db, tenant)) == num_before + 1
