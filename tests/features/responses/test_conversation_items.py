"""The items of conversations as the API reads and changes them."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.responses import conversations
from headrace.features.responses.new_response import NewResponse
from headrace.features.responses.stored_responses import StoredResponse
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.jobs.claims import claim
from headrace.store.jobs.jobs import Job
from headrace.store.jobs.responses import response_id
from headrace.store.schema.job_states import JobState
from tests.refusals import Naming
from tests.sealing import TurnedSeal
from tests.store.jobs.test_job_reads import end
from tests.store.making import QUEUE, AcceptOne, Query


def item(name: str, text: str = "") -> dict[str, Any]:
    return {"id": name, "text": text}


class TestConversations:
    def test_items_are_paged_in_both_directions_and_deleted_one_by_one(
        self, db: Database, tenant: str, other_tenant: str, query: Query
    ) -> None:
        db.seal = TurnedSeal("k1")
        made = conversations.create(db, tenant, metadata={"a": "b"}, items=[item("m1"), item("m2")])
        other = conversations.create(db, tenant, metadata={}, items=[item("m9")])
        conversations.add_items(db, tenant, made.id, [item("m3"), item("m2", "again"), item("m4")])

        def listed(**page: Any) -> list[str]:
            given = {"limit": 9, "after": None, "descending": False, **page}
            return [one["id"] for one in conversations.list_items(db, tenant, made.id, **given)]

        assert listed() == ["m1", "m2", "m3", "m4"]
        assert listed(descending=True, limit=2) == ["m4", "m3"]
        assert (listed(after="m2"), listed(after="m2", descending=True)) == (["m3", "m4"], ["m1"])
        with pytest.raises(InvalidRequest) as caught:
            listed(after="m9")
        assert (caught.value.message, caught.value.param) == (Naming("'m9'"), "after")
        assert conversations.get_item(db, tenant, made.id, "m2") == item("m2"), "the first one stays"
        conversations.delete_item(db, tenant, made.id, "m2")
        for call in (conversations.get_item, conversations.delete_item):
            with pytest.raises(NotFound) as missing:
                call(db, tenant, made.id, "m2")
            assert missing.value.message == Naming("m2", made.id)
        found = conversations.read_items(db, tenant, made.id)
        assert (found.items, found.last_response_id) == ([item("m1"), item("m3"), item("m4")], None)
        assert conversations.get(db, tenant, made.id) == made
        assert conversations.set_metadata(db, tenant, made.id, {"c": "d"}) == replace(made, metadata={"c": "d"})
        assert "text" not in str(query("SELECT item FROM conversation_items")), "they are sealed"
        for foreign in (
            lambda: conversations.get(db, other_tenant, made.id),
            lambda: conversations.set_metadata(db, other_tenant, made.id, {}),
            lambda: conversations.delete(db, other_tenant, made.id, actor="x"),
            lambda: conversations.add_items(db, other_tenant, made.id, [item("m5")]),
            lambda: conversations.list_items(db, other_tenant, made.id, limit=1, after=None, descending=False),
            lambda: conversations.read_items(db, other_tenant, made.id),
        ):
            with pytest.raises(NotFound) as missing:
                foreign()
            assert missing.value.message == f"no conversation {made.id}"
        conversations.delete(db, tenant, made.id, actor="key_1")
        (entry,) = (one for one in list_entries(db, tenant) if one.action == "conversation.deleted")
        assert (entry.resource, entry.actor) == (made.id, "key_1")
        assert query("SELECT conversation_id, id FROM conversation_items") == [
            {"conversation_id": other.id, "id": "m9"}
        ]

    def test_it_has_room_for_so_many_items_and_bytes(self, db: Database, tenant: str, query: Query) -> None:
        made = conversations.create(db, tenant, metadata={}, items=[item(str(n)) for n in range(1023)])
        with pytest.raises(InvalidRequest) as caught:
            conversations.add_items(db, tenant, made.id, [item("a"), item("b")])
        assert (caught.value.code, caught.value.param) == ("conversation_too_long", "items")
        assert caught.value.message == Naming("1024 items", "4194304 bytes")
        conversations.add_items(db, tenant, made.id, [item("a")])
        with pytest.raises(InvalidRequest):
            conversations.add_items(db, tenant, made.id, [item("b")])
        with pytest.raises(InvalidRequest):
            conversations.read_items(db, tenant, made.id).check_room()
        query("DELETE FROM conversation_items WHERE id <> '0'")
        (row,) = query("SELECT num_bytes FROM conversation_items")
        left = 4_194_304 - row["num_bytes"] - len('{"id":"c","text":""}')
        with pytest.raises(InvalidRequest):
            conversations.add_items(db, tenant, made.id, [item("c", "x" * (left + 1))])
        conversations.add_items(db, tenant, made.id, [item("c", "x" * left)])

    def test_ended_responses_are_copied_once_in_the_order_of_their_ends(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        db.seal = TurnedSeal("k1")
        made = conversations.create(db, tenant, metadata={})
        asked: list[str] = []
        for number in range(5):
            new = NewResponse(None, True, False, [item(f"u{number}")], {"n": number}, appends_to=made.id)
            asked.append(accept_one(response=new))
        second, first, failed, deleted, running = asked
        end(db, first)
        end(db, second)
        end(db, failed, JobState.FAILED, error={"code": "x", "message": "y"})
        end(db, deleted)
        query("UPDATE responses SET deleted_at = now() WHERE job_id = :id", id=deleted)
        claim(db, "worker", QUEUE, [running], 60)
        seen: list[tuple[str, Any]] = []

        def output_of(job: Job, stored: StoredResponse) -> list[dict[str, Any]]:
            seen.append((job.id, stored.request))
            return [item(f"a_{stored.request['n']}", (job.output or {})["text"])]

        for _ in range(2):
            conversations.settle(db, tenant, made.id, output_of)
        assert seen == [(first, {"n": 1}), (second, {"n": 0})]
        found = conversations.read_items(db, tenant, made.id)
        assert found.items == [item("u1"), item("a_1", "Hello"), item("u0"), item("a_0", "Hello")]
        assert found.last_response_id == response_id(second)
        left = query("SELECT job_id FROM responses WHERE appends_to IS NOT NULL")
        assert left == [{"job_id": running}]
