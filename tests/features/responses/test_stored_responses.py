"""The rows of responses as the API reads and deletes them."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.responses import stored_responses
from headrace.features.responses.new_response import NewResponse
from headrace.features.responses.stored_responses import StoredResponse
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.jobs import erasure
from headrace.store.jobs.responses import response_id
from tests.features.retention.test_erasure import audited
from tests.refusals import Naming
from tests.sealing import TurnedSeal
from tests.store.jobs.test_job_reads import end
from tests.store.making import AcceptOne, Query


class TestResponses:
    def test_a_row_is_read_as_it_was_stored_unless_it_is_not_to_be_seen(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        db.seal = TurnedSeal("k1")
        new = NewResponse("resp_before", True, True, [{"text": "a"}], {"instructions": "b"})
        shown, hidden, deleted = (accept_one(response=new) for _ in range(3))
        unstored = accept_one(response=replace(new, is_stored=False))
        for job_id, column in ((hidden, "hidden_at"), (deleted, "deleted_at")):
            query(f"UPDATE responses SET {column} = now() WHERE job_id = :id", id=job_id)
        expected = StoredResponse(shown, "resp_before", True, True, {"instructions": "b"})
        assert stored_responses.get(db, tenant, shown) == expected == StoredResponse.of(shown, new)
        assert stored_responses.get(db, tenant, unstored, unstored=True).is_stored is False
        for owner, job_id in ((tenant, hidden), (tenant, deleted), (tenant, unstored), (other_tenant, shown)):
            with pytest.raises(NotFound) as caught:
                stored_responses.get(db, owner, job_id)
            assert caught.value.message == f"no response resp_{job_id.removeprefix('job_')}"
        assert [stored_responses.was_deleted(db, tenant, one) for one in (shown, hidden, deleted)] == [
            False,
            False,
            True,
        ]
        assert not stored_responses.was_deleted(db, other_tenant, deleted)
        assert stored_responses.job_id_of("resp_1") == "job_1"
        with pytest.raises(NotFound, match="no response job_1"):
            stored_responses.job_id_of("job_1")

    def test_a_chain_has_the_items_of_all_turns_also_of_deleted_ones(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        db.seal = TurnedSeal("k1")
        turns: list[str] = []
        for number in range(3):
            before = response_id(turns[-1]) if turns else None
            new = NewResponse(before, True, False, [{"n": number}], {}, goes_on=bool(turns))
            turns.append(accept_one(response=new))
        query("UPDATE responses SET deleted_at = now() WHERE job_id = :id", id=turns[1])
        found = stored_responses.get_chain(db, tenant, turns[2])
        assert (found.items, found.num_turns) == ([{"n": 0}, {"n": 1}, {"n": 2}], 3)
        assert stored_responses.get_input(db, tenant, turns[0]) == [{"n": 0}]
        query("DELETE FROM responses WHERE job_id = :id", id=turns[0])
        with pytest.raises(NotFound, match=r"beginning .* of resp_\w+"):
            stored_responses.get_chain(db, tenant, turns[2])
        for owner, job_id in ((tenant, turns[1]), (other_tenant, turns[2])):
            with pytest.raises(NotFound, match="no response resp_"):
                stored_responses.get_chain(db, owner, job_id)

    @pytest.mark.parametrize(
        ("items", "num_turns", "is_full"),
        [([], 255, False), ([], 256, True), (["x" * 4_194_300], 1, False), (["x" * 4_194_301], 1, True)],
    )
    def test_a_conversation_has_room_for_so_many_turns_and_bytes(
        self, items: list[Any], num_turns: int, is_full: bool
    ) -> None:
        chain = stored_responses.ResponseChain(items, num_turns)
        if not is_full:
            chain.check_room()
            return
        with pytest.raises(InvalidRequest) as caught:
            chain.check_room()
        size = len(items[0]) + 4 if items else 2
        assert caught.value.message == Naming(f"{num_turns} responses", f"{size} bytes", "256 with 4194304")
        assert (caught.value.code, caught.value.param) == ("conversation_too_long", "previous_response_id")

    def test_a_response_is_kept_hidden_for_those_that_need_it(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        new = NewResponse(None, True, False, [{"n": 1}], {"a": "b"})
        first = accept_one(response=new)
        second = accept_one(response=replace(new, previous_id=response_id(first), goes_on=True))
        unstored = accept_one(response=replace(new, is_stored=False))
        for job_id in (first, second):
            end(db, job_id)
        for owner, job_id in ((other_tenant, first), (tenant, unstored), (tenant, "job_x")):
            with pytest.raises(NotFound, match=f"^no response {response_id(job_id)}$"):
                stored_responses.delete(db, owner, job_id, actor="key_1")
        stored_responses.delete(db, tenant, first, actor="key_1")
        kept = "SELECT job_id, input, request, goes_on, deleted_at IS NULL AS is_there FROM responses ORDER BY job_id"
        rows = query(kept)[:2]
        assert rows[0] == {"job_id": first, "input": [{"n": 1}], "request": {}, "goes_on": False, "is_there": False}
        with pytest.raises(NotFound):
            stored_responses.delete(db, tenant, first, actor="key_1")
        with db.begin() as connection:
            erasure.erase_inputs(connection, [second])
        rows = query(kept)
        assert [row["job_id"] for row in rows] == [first, unstored]
        assert (rows[0]["input"], rows[0]["is_there"]) == ([], False), "no later response needs its items"
        assert audited(db, tenant, "response.deleted") == [(response_id(first), "key_1", {}, None)]
