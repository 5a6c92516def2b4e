"""Both clients against a real API: submit, wait, stream, restart, cancel, repeats, errors."""

import inspect
import itertools
import threading
import time
from typing import Any

import pytest

from headrace.client import (
    AsyncClient,
    Client,
    InvalidApiKey,
    JobBody,
    JobInfo,
    JobUnsuccessful,
    JobUsage,
    RequestRefused,
    ResourceMissing,
    TooManyRequests,
    WaitExpired,
)
from headrace.client.job_data import QueueInfo
from headrace.producer_api.jobs.job_views import JobObject, QueuePlace, UsageObject
from headrace.store.db.database import Database
from headrace.store.payloads.job_payload import JobOrder, JobTerms
from headrace.store.settings import Settings
from headrace.store.tasks.flow import FlowRequest
from headrace.store.tasks.registry import TASKS
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits
from tests.clients.cutting import cutting
from tests.headrace.client.conftest import Connect
from tests.headrace.client.cut_proxy import cut_proxy
from tests.producer_api.calling import num_jobs
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer, serving
from tests.refusals import Naming

PROMPT: Any = {"model": "tiny", "input": {"prompt": "hello"}}


def text_of(events: list[Any]) -> str:
    """The text as a reader puts it together."""
    text = ""
    for event in events:
        text = event.text if event.is_restart else text + event.text
    return text


def test_a_job_is_submitted_waited_for_listed_and_deleted(client: Client, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _payload: ["Wa", "ter"]):
        job = client.submit(**PROMPT, metadata={"order": "7"}, sampling={"max_tokens": 9})
        assert client.result(job["id"])["text"] == "Water"
        ended = client.wait(job["id"], timeout_s=30)
        assert (ended["status"], ended["usage"]["output_tokens"]) == ("succeeded", 2)
        other = client.submit(**PROMPT)
        client.wait(other["id"])
    (found,) = client.jobs(metadata={"order": "7"}, status="succeeded", limit=5)["data"]
    assert found["id"] == job["id"]
    first = client.jobs(limit=1)
    assert (first["data"][0]["id"], first["has_more"]) == (other["id"], True)
    assert client.jobs(limit=1, after=first["last_id"])["data"][0]["id"] == job["id"]
    assert [event["kind"] for event in client.timeline(job["id"])] == ["queued", "started", "succeeded"]
    client.delete(job["id"])
    with pytest.raises(ResourceMissing) as raised:
        client.job(job["id"])
    assert raised.value.status == 410


def test_a_wait_ends_in_time_and_the_job_goes_on(client: Client, worker: ScriptedWorker) -> None:
    job = client.submit(**PROMPT)
    with pytest.raises(WaitExpired) as raised:
        client.result(job["id"], timeout_s=0.2)
    assert isinstance(raised.value, TimeoutError)
    assert raised.value.job["status"] == "queued"
    ending = threading.Timer(0.2, lambda: worker.succeed(worker.claim(job["id"])))
    ending.start()
    assert client.wait(job["id"])["status"] == "succeeded"
    ending.join()


@pytest.mark.parametrize("is_ended", [False, True], ids=["while it runs", "after its end"])
def test_a_stream_over_cut_connections_has_no_gap(
    connect: Connect, server: ApiServer, key: str, worker: ScriptedWorker, is_ended: bool
) -> None:
    pieces = [f"piece {number}, " for number in range(30)]
    cuts = [50, *range(700, 1700, 200)]  # the first one in the head of the answer
    with cut_proxy(server.url, cuts) as (url, left):
        client = connect(url, key)
        job = connect(server.url, key).submit(**PROMPT)
        attempt = worker.claim(job["id"])

        def work(pause_s: float) -> None:
            for piece in pieces:
                worker.say(attempt, piece)
                time.sleep(pause_s)
            worker.succeed(attempt)

        thread = threading.Thread(target=work, args=(0 if is_ended else 0.02,))
        thread.start()
        if is_ended:
            thread.join()
        events = list(client.stream(job["id"]))
        thread.join()
        assert len(left) < len(cuts) - 3, "the proxy has cut nothing"
    assert [event.text for event in events if event.text] == pieces
    assert [event.name for event in events][-1] == "job.succeeded"
    assert len({event.id for event in events}) == len(events) == len(pieces) + 3


def test_a_restart_is_surfaced_with_the_text_that_is_still_valid(client: Client, worker: ScriptedWorker) -> None:
    job = client.submit(**PROMPT)
    first = worker.claim(job["id"])
    worker.say(first, "a", "b", "c")
    stream = client.stream(job["id"])
    events = list(itertools.islice(stream, 5))
    assert text_of(events) == "abc"
    worker.hand_back(first, charge=True)
    second = worker.go_on(first, 2)
    worker.say(second, "C")
    worker.succeed(second)
    events += stream
    (restart,) = [event for event in events if event.is_restart]
    assert (restart.text, restart.data["attempt"]) == ("ab", 2)
    assert text_of(events) == events[-1].data["output"]["text"] == "abC"


def test_a_stream_resumes_from_any_event_of_another_reader(client: Client, worker: ScriptedWorker) -> None:
    job = client.submit(**PROMPT)
    attempt = worker.claim(job["id"])
    worker.say(attempt, "a\u2028", "b\x85", "c")  # characters that end a line elsewhere than in server-sent events
    worker.succeed(attempt)
    events = list(client.stream(job["id"]))
    assert text_of(events) == "a\u2028b\x85c"
    for number, event in enumerate(events, 1):
        assert list(client.stream(job["id"], after=event.id)) == events[number:]


def test_a_cancelled_job_has_no_result(client: Client, worker: ScriptedWorker) -> None:
    queued, running = client.submit(**PROMPT), client.submit(**PROMPT)
    assert client.cancel(queued["id"])["status"] == "cancelled"
    with pytest.raises(JobUnsuccessful) as raised:
        client.result(queued["id"])
    assert (raised.value.code, raised.value.job["status"]) == ("cancelled", "cancelled")
    attempt = worker.claim(running["id"])
    worker.say(attempt, "so far")
    assert client.cancel(running["id"])["status"] == "running"
    worker.obey_cancel(attempt)
    assert client.wait(running["id"])["output"]["text"] == "so far"
    assert client.cancel(running["id"])["status"] == "cancelled"


def test_a_job_that_has_succeeded_is_not_cancelled(client: Client, worker: ScriptedWorker) -> None:
    job = client.submit(**PROMPT)
    worker.succeed(worker.claim(job["id"]))
    with pytest.raises(RequestRefused, match="succeeded") as raised:
        client.cancel(job["id"])
    assert raised.value.code == "job_not_cancellable"


def test_a_repeated_submit_makes_one_job(connect: Connect, server: ApiServer, key: str, db: Database) -> None:
    with cutting(server.url) as url:
        job = connect(url, key).submit(**PROMPT)
    assert num_jobs(db) == 1
    client = connect(server.url, key)
    again = [client.submit(**PROMPT, idempotency_key="mine")["id"] for _ in range(2)]
    assert len({*again, job["id"]}) == num_jobs(db) == 2
    with pytest.raises(RequestRefused) as raised:
        client.submit(**PROMPT, priority=1, idempotency_key="mine")
    assert raised.value.code == "idempotency_key_reused"


@pytest.mark.usefixtures("model")
def test_over_a_limit_the_client_waits_for_its_turn(
    connect: Connect, settings: Settings, db: Database, tenant: str, key: str, worker: ScriptedWorker
) -> None:
    set_limits(db, tenant, None, Limits(concurrent_jobs=1), set_by=SetBy.OPERATOR, actor="tests")
    warnings: list[str] = []
    with serving(settings) as server:
        first = connect(server.url, key).submit(**PROMPT)
        with pytest.raises(TooManyRequests) as raised:
            connect(server.url, key, max_retries=0).submit(**PROMPT)
        assert raised.value.status == 429
        assert raised.value.retry_after_s > 0

        def end_the_first(warning: str) -> None:
            if not warnings:
                worker.succeed(worker.claim(first["id"]))
            warnings.append(warning)

        second = connect(server.url, key, on_warning=end_the_first).submit(**PROMPT)
        assert second["id"] != first["id"]
    assert f"{raised.value.message}; again in" in warnings[0]


def test_an_error_says_what_the_server_says(connect: Connect, server: ApiServer, key: str) -> None:
    client = connect(server.url, key)
    with pytest.raises(RequestRefused) as refused:
        client.submit(**PROMPT, priority=10)
    assert (refused.value.code, refused.value.param, refused.value.status) == ("invalid_value", "priority", 400)
    assert refused.value.request_id.startswith("req_")
    with pytest.raises(ResourceMissing, match="job_1"):
        client.job("job_1")
    with pytest.raises(ResourceMissing, match="job_1"):
        list(client.stream("job_1"))
    with pytest.raises(InvalidApiKey):
        connect(server.url, "hr_wrong").jobs()
    assert client.request("GET", "/v1/models")["data"][0]["id"] == "tiny"


def test_a_warning_of_an_answer_is_passed_on(connect: Connect, server: ApiServer, key: str) -> None:
    warnings: list[str] = []
    connect(server.url, key, on_warning=warnings.append).submit(**PROMPT)
    assert warnings == [Naming("tiny@1")]


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[Any]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        shown = [(name, inspect.signature(method)) for name, method in found if not name.startswith("_")]
        return {name: list(signature.parameters.values()) for name, signature in shown}

    assert methods(AsyncClient) == methods(Client)


@pytest.mark.whole
def test_the_types_are_those_of_the_api() -> None:
    for ours, theirs in ((JobInfo, JobObject), (JobUsage, UsageObject), (QueueInfo, QueuePlace)):
        assert set(ours.__annotations__) == set(theirs.model_fields)
    bodies: list[type[JobTerms]] = [FlowRequest, *(task.request for task in TASKS.values())]
    assert JobOrder.model_fields.keys() <= set(JobBody.__annotations__)
    assert set(JobBody.__annotations__) <= {name for body in bodies for name in body.model_fields}
