"""The receiver verifies signatures, answers according to its path, and logs its answers."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from standardwebhooks import Webhook

from headrace.store.tenants.signing_secrets import new_secret
from tests.chaos.journal import Journal, read_journal
from tests.chaos.receiver import Receiver

BODY = json.dumps({"id": "evt_1", "type": "job.succeeded", "data": {"id": "job_1", "status": "succeeded"}}).encode()


def signed(secret: str) -> dict[str, str]:
    """Headers made by the standard library for webhooks."""
    now = datetime.now(UTC)
    signature = Webhook(secret).sign("evt_1", now, BODY.decode())
    return {"webhook-id": "evt_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}


async def call(tmp_path: Path, secret: str, *requests: tuple[str, dict[str, str]]) -> list[int | None]:
    """Send requests to a receiver that knows ``secret`` and return the answers, None for a connection that broke."""
    journal = Journal(tmp_path / "hooks.jsonl")
    receiver = Receiver(journal, [secret])
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    answers: list[int | None] = []
    async with server, httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        for path, headers in requests:
            try:
                response = await client.post(f"http://127.0.0.1:{port}/0/{path}", content=BODY, headers=headers)
                answers.append(response.status_code)
            except httpx2.TransportError:
                answers.append(None)
    journal.close()
    return answers


async def test_only_the_tenants_own_signature_is_good(tmp_path: Path) -> None:
    secret = new_secret()
    forged = signed(secret) | {"webhook-timestamp": "1"}
    assert (
        await call(tmp_path, secret, ("ok", signed(secret)), ("ok", signed(new_secret())), ("ok", forged)) == [204] * 3
    )
    calls = read_journal(tmp_path / "hooks.jsonl")
    assert [event["signed"] for event in calls] == [True, False, False]
    assert {(event["job"], event["type"], event["id"]) for event in calls} == {("job_1", "job.succeeded", "evt_1")}


@pytest.mark.parametrize(("path", "answer"), [("500", 500), ("301", 301), ("410", 410), ("429", 429), ("rst", None)])
async def test_it_answers_as_the_path_says(tmp_path: Path, path: str, answer: int | None) -> None:
    secret = new_secret()
    assert await call(tmp_path, secret, (path, signed(secret))) == [answer]


async def test_flaky_fails_each_event_once(tmp_path: Path) -> None:
    secret = new_secret()
    first, second = await call(tmp_path, secret, ("flaky", signed(secret)), ("flaky", signed(secret)))
    assert first in (500, None)
    assert second == 204
