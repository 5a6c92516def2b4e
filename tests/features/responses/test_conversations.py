"""Storage of a conversation: each turn's own items, as long as a later response continues them."""

from typing import Any

import httpx2
import pytest
import redis
from sqlalchemy import text

from headrace.features.responses import stored_responses
from headrace.features.responses.stored_responses import job_id_of
from headrace.store.db.database import Database
from headrace.store.jobs import erasure, sweeps
from headrace.store.json_text import dump_json
from tests.producer_api.calling import error_of
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.stored import everything_stored


class Talk:
    """A conversation with a model that answers ``answer N``."""

    def __init__(self, api: httpx2.Client, worker: ScriptedWorker) -> None:
        self.ids: list[str] = []
        self.said: list[str] = []
        self._api, self._worker = api, worker

    def ask(self, said: str, after: str | None = None) -> httpx2.Response:
        """Send the next turn; if accepted, record its id and texts."""
        previous = after or (self.ids[-1] if self.ids else None)
        body = {"model": "tiny", "input": said, "previous_response_id": previous, "truncation": "auto"}
        answer = f"answer {len(self.ids)}"
        with self._worker.serve(lambda _payload: [answer]):
            response = self._api.post("/v1/responses", json=body)
        if response.status_code == 200:
            self.ids.append(response.json()["id"])
            self.said += [said, answer]
        return response

    def listed(self, number: int = -1) -> list[str]:
        """What the response with this number was generated from, as the API lists it."""
        target = f"/v1/responses/{self.ids[number]}/input_items?order=asc&limit=100"
        return ["".join(part["text"] for part in item["content"]) for item in self._api.get(target).json()["data"]]


@pytest.fixture
def talk(api: httpx2.Client, worker: ScriptedWorker) -> Talk:
    return Talk(api, worker)


def _stored(db: Database, response_id: str) -> Any:
    statement = text("SELECT input FROM responses WHERE job_id = :id")
    with db.begin() as connection:
        return connection.execute(statement, {"id": job_id_of(response_id)}).scalar_one_or_none()


def _expire(db: Database, *response_ids: str) -> None:
    with db.begin() as connection:
        erasure.erase(connection, [job_id_of(one) for one in response_ids])


def test_each_turn_stores_what_is_new(talk: Talk, db: Database) -> None:
    for number in range(8):
        assert talk.ask(f"{number}" * 200).status_code == 200
    sizes = [len(dump_json(_stored(db, one))) for one in talk.ids]
    assert max(sizes[1:]) < 2 * min(sizes[1:]), "the last turn stores no more than the second"
    assert talk.listed() == talk.said[:-1]
    assert talk.listed(3) == talk.said[:7]


def test_what_an_earlier_release_stored_is_read_and_continued(talk: Talk, db: Database) -> None:
    talk.ask("one")
    talk.ask("two")
    whole = [*_stored(db, talk.ids[0]), *_stored(db, talk.ids[1])["items"]]
    with db.begin() as connection:
        # All items are in the row, whatever became of those before it.
        values = {"id": job_id_of(talk.ids[1]), "input": dump_json(whole)}
        statement = "UPDATE responses SET goes_on = false, input = CAST(:input AS jsonb) WHERE job_id = :id"
        connection.execute(text(statement), values)
        connection.execute(text("DELETE FROM responses WHERE job_id = :id"), {"id": job_id_of(talk.ids[0])})
    assert talk.listed() == talk.said[:-1]
    assert talk.ask("three").status_code == 200
    assert talk.listed() == talk.said[:-1]


def test_items_are_kept_as_long_as_something_goes_on_from_them(
    talk: Talk, api: httpx2.Client, db: Database, redis_client: redis.Redis
) -> None:
    for said in ("xyzzy-one", "xyzzy-two", "xyzzy-three"):
        talk.ask(said)
    first, second, third = talk.ids
    talk.ask("another", after=first)
    branch = talk.ids.pop()
    del talk.said[-2:]
    assert api.delete(f"/v1/responses/{second}").status_code == 200
    _expire(db, first)
    assert [api.get(f"/v1/responses/{one}").status_code for one in (first, second, third)] == [410, 404, 200]
    assert api.post("/v1/responses", json={"model": "tiny", "previous_response_id": first}).status_code == 410
    assert talk.listed() == talk.said[:-1]
    assert talk.ask("xyzzy-four").status_code == 200
    assert talk.listed() == talk.said[:-1]
    # Their rows stay as well.
    sweeps.purge(db, record_ttl_s=0, idempotency_ttl_s=3600, limit=100)
    assert talk.listed() == talk.said[:-1]

    _expire(db, third)
    assert api.delete(f"/v1/responses/{talk.ids[-1]}").status_code == 200
    assert (_stored(db, third), _stored(db, second)) == (None, [])
    assert _stored(db, first) is not None, "the other branch goes on from it"
    _expire(db, branch)
    assert [_stored(db, one) for one in (first, branch)] == [None, None]
    assert "xyzzy" not in everything_stored(db, redis_client)


def test_a_conversation_has_a_greatest_length(talk: Talk, api: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_responses, "MAX_TURNS", 3)
    for number in range(3):
        assert talk.ask(str(number)).status_code == 200
    long = talk.ask("x")
    assert (long.status_code, error_of(long)["code"]) == (400, "conversation_too_long")
    assert error_of(long)["param"] == "previous_response_id"
    assert talk.listed() == talk.said[:-1]
    monkeypatch.setattr(stored_responses, "MAX_TURNS", 100)
    monkeypatch.setattr(stored_responses, "MAX_BYTES", 100)
    assert error_of(talk.ask("x"))["code"] == "conversation_too_long"
