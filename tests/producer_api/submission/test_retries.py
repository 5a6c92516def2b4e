"""A client that sends a request again without an Idempotency-Key, as OpenAI's does when it got no answer."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlsplit

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import text

from headrace.store.db.database import Database
from tests.processes import wait_for
from tests.producer_api.calling import CHAT, PROMPT, cut_off, num_jobs, split, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer

AGAIN = {"x-stainless-retry-count": "1"}


def test_a_retry_gets_the_job_that_the_first_try_made(api: httpx2.Client, db: Database) -> None:
    first = api.post("/v1/jobs", json=PROMPT)
    assert "idempotent-replayed" not in first.headers
    for count in ("1", "2"):
        again = api.post("/v1/jobs", json=PROMPT, headers={"x-stainless-retry-count": count})
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
        assert again.headers["idempotent-replayed"] == "true"
    assert num_jobs(db) == 1


def test_a_retry_of_a_request_that_never_came_makes_the_job(api: httpx2.Client, db: Database) -> None:
    first = api.post("/v1/jobs", json=PROMPT, headers=AGAIN)
    second = api.post("/v1/jobs", json=PROMPT, headers={"x-stainless-retry-count": "2"})
    assert first.status_code == 202
    assert first.json()["id"] == second.json()["id"]
    assert num_jobs(db) == 1


@pytest.mark.parametrize("headers", [{}, {"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": ""}])
def test_the_same_request_on_purpose_makes_a_second_job(
    api: httpx2.Client, db: Database, headers: dict[str, str]
) -> None:
    submit(api)
    assert api.post("/v1/jobs", json=PROMPT, headers=headers).status_code == 202
    assert num_jobs(db) == 2


def test_only_the_same_body_key_and_route_within_ten_minutes_is_the_same_request(
    api: httpx2.Client, make_client: MakeClient, other_key: str, db: Database
) -> None:
    first = submit(api)

    def made_another(client: httpx2.Client, route: str = "/v1/jobs", body: object = PROMPT) -> bool:
        before = num_jobs(db)
        response = client.post(route, json=body, headers=AGAIN)
        assert response.is_success, response.text
        return num_jobs(db) == before + 1

    assert made_another(api, body=PROMPT | {"priority": 1})
    assert made_another(make_client(other_key))
    assert not made_another(api)
    with db.begin() as connection:
        age = "UPDATE jobs SET created_at = created_at - interval '10 min' WHERE id = :id"
        connection.execute(text(age), {"id": first})
    assert made_another(api)


def test_an_idempotency_key_decides_alone(api: httpx2.Client, db: Database) -> None:
    submit(api)
    assert api.post("/v1/jobs", json=PROMPT, headers=AGAIN | {"Idempotency-Key": "k"}).status_code == 202
    assert num_jobs(db) == 2


def test_a_cancelled_job_is_not_brought_back(api: httpx2.Client, db: Database) -> None:
    first = submit(api)
    api.post(f"/v1/jobs/{first}/cancel").raise_for_status()
    again = api.post("/v1/jobs", json=PROMPT, headers=AGAIN)
    assert again.json()["id"] != first


def test_a_streamed_chat_joins_the_job_of_the_first_try(
    api: httpx2.Client, worker: ScriptedWorker, db: Database
) -> None:
    body = CHAT | {"stream": True}
    with worker.serve(lambda _: ["wat", "er"]):
        first = api.post("/v1/chat/completions", json=body)
        again = api.post("/v1/chat/completions", json=body, headers=AGAIN)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-job-id"] == first.headers["x-job-id"]
    assert split(again.content) == split(first.content)
    assert "wat" in first.text
    assert num_jobs(db) == 1


def test_the_official_client_asks_twice_and_pays_once(
    server: ApiServer, key: str, worker: ScriptedWorker, db: Database
) -> None:
    with (
        cut_off_once(server.url) as url,
        worker.serve(lambda _: ["water"]),
        OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=2, timeout=60) as client,
    ):
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
        )
    assert answer.choices[0].message.content == "water"
    assert num_jobs(db) == 1


def test_a_caller_whose_line_was_cut_meets_his_own_job(
    api: httpx2.Client, worker: ScriptedWorker, db: Database
) -> None:
    def counted() -> tuple[str, int] | None:
        with db.begin() as connection:
            row = connection.execute(text("SELECT id, callers FROM jobs WHERE cancel_requested_at IS NULL")).first()
        return None if row is None else (row.id, row.callers)

    with ThreadPoolExecutor(1) as pool:
        with cut_off(api, "/v1/chat/completions", CHAT):
            job_id, _ = wait_for(counted, "the job is stored") or ("", 0)
            # Sent before the line is cut: a busy machine could be too late for a job that is cancelled soon after.
            again = pool.submit(lambda: api.post("/v1/chat/completions", json=CHAT, headers=AGAIN))
            wait_for(lambda: counted() == (job_id, 2), "the second try joined it")
        wait_for(lambda: counted() == (job_id, 1), "the first try was found to be gone")
        attempt = worker.claim(job_id)
        worker.say(attempt, "water")
        worker.succeed(attempt)
        answer = again.result()
    assert answer.json()["choices"][0]["message"]["content"] == "water"
    assert num_jobs(db) == 1


@contextmanager
def cut_off_once(url: str) -> Iterator[str]:
    """An address that leads to ``url``; the first connection is cut when its answer begins to come."""
    parts = urlsplit(url)
    listener = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        for turn in range(2):
            inside, _ = listener.accept()
            with closing(inside), socket.create_connection((parts.hostname or "", parts.port or 0)) as outside:
                there = threading.Thread(target=carry, args=(inside, outside), daemon=True)
                there.start()
                if turn == 0:
                    outside.recv(1)
                    inside.shutdown(socket.SHUT_RDWR)
                else:
                    carry(outside, inside)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
