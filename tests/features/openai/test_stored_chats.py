"""Stored chats as the API reads, changes and deletes them."""

from typing import Any

import pytest

from headrace.features.openai import stored_chats
from headrace.features.openai.stored_chats import ChatFilter
from headrace.store.db.database import Database
from headrace.store.errors import Gone, NotFound
from headrace.store.jobs.erasure import erase_outputs
from headrace.store.schema.job_states import JobState
from tests.features.retention.test_erasure import audited
from tests.sealing import TurnedSeal
from tests.store.jobs.test_job_reads import end
from tests.store.making import AcceptOne, Query


class TestStoredChats:
    def test_they_are_listed_by_age_with_their_filters(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne
    ) -> None:
        db.seal = TurnedSeal("k1")
        chats = [accept_one(is_stored=True, metadata={"n": str(n % 2)}) for n in range(4)]
        elsewhere = accept_one(is_stored=True, model="other", model_version=2)
        for job_id in (*chats, elsewhere, unstored := accept_one(), foreign := accept_one(tenant_id=other_tenant)):
            end(db, job_id)
        waiting = accept_one(is_stored=True)

        def listed(wanted: ChatFilter | None = None, **page: Any) -> list[str]:
            return [
                job.id for job in stored_chats.list_chats(db, tenant, wanted or ChatFilter(), **{"limit": 9, **page})
            ]

        assert listed() == [*chats, elsewhere]
        assert listed(descending=True, limit=2) == [elsewhere, chats[3]]
        after = stored_chats.chat_id(chats[1])
        assert (listed(after=after), listed(after=after, descending=True)) == ([*chats[2:], elsewhere], [chats[0]])
        assert listed(ChatFilter(model="other")) == listed(ChatFilter(model_version=2)) == [elsewhere]
        assert listed(ChatFilter(metadata={"n": "1"})) == chats[1::2]
        with db.begin() as connection:
            erase_outputs(connection, [chats[0]])
        assert listed() == [*chats[1:], elsewhere]
        for job_id, error in (
            (chats[0], Gone),
            (unstored, NotFound),
            (waiting, NotFound),
            (foreign, NotFound),
        ):
            chat_id = stored_chats.chat_id(job_id)
            for call in (
                lambda chat_id=chat_id: stored_chats.get(db, tenant, chat_id),
                lambda chat_id=chat_id: stored_chats.set_metadata(db, tenant, chat_id, {}),
            ):
                with pytest.raises(error, match=chat_id):
                    call()
        stored_chats.set_metadata(db, tenant, stored_chats.chat_id(chats[1]), {"n": "7"})
        assert stored_chats.get(db, tenant, stored_chats.chat_id(chats[1])).metadata == {"n": "7"}
        assert listed(ChatFilter(metadata={"n": "7"})) == [chats[1]]
        with pytest.raises(NotFound):
            stored_chats.job_id_of(chats[1])

    def test_a_stored_chat_is_deleted_once_and_nothing_else_is(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        chat, plain, waiting, failed = (
            accept_one(is_stored=True),
            accept_one(),
            accept_one(is_stored=True),
            accept_one(is_stored=True),
        )
        for job_id in (chat, plain):
            end(db, job_id)
        end(db, failed, JobState.FAILED, error={"code": "x", "message": "y"})
        stored_chats.delete(db, tenant, stored_chats.chat_id(chat), actor="key_1", request_id="req_1")
        for owner, job_id in (
            (tenant, chat),
            (tenant, plain),
            (tenant, waiting),
            (tenant, failed),
            (other_tenant, waiting),
        ):
            with pytest.raises(NotFound) as caught:
                stored_chats.delete(db, owner, stored_chats.chat_id(job_id), actor="key_1")
            assert stored_chats.chat_id(job_id) in caught.value.message
        assert audited(db, tenant, "chat.deleted") == [(stored_chats.chat_id(chat), "key_1", {}, "req_1")]
        left = {row["id"] for row in query("SELECT id FROM jobs WHERE input_purged_at IS NULL")}
        assert left == {plain, waiting, failed}
