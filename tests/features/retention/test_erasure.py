"""Erasure and retention exactly: the fields that each kind of erasure empties, the times, and the records."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.features.files import files
from headrace.features.files.blob_storage import open_blobs
from headrace.features.files.files import Purpose
from headrace.features.response_cache.entries import CacheLookup
from headrace.features.responses import conversations
from headrace.features.responses.new_response import NewResponse
from headrace.features.retention import retention
from headrace.features.retention.purge import PurgeStep, Scope, purge_step, record_purge
from headrace.features.retention.retention import DAY_S, ErasureCounts, LayeredRetention, Retention, sweep, sweep_marked
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.digests import Digests
from headrace.store.errors import Conflict, Gone, InvalidRequest, NotFound
from headrace.store.jobs import erasure
from headrace.store.jobs.acceptance import Fallback
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.jobs.jobs import get, request_cancel
from headrace.store.jobs.responses import response_id
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants.tenant_limits import SetBy
from tests.refusals import Naming
from tests.store.making import QUEUE, AcceptOne, Query, ask_approval

ERROR = {"code": "poison", "message": "secret", "retryable": False, "attempt": 1, "rule": "secret"}


def end(db: Database, job_id: str, state: JobState = JobState.SUCCEEDED, **changes: Any) -> None:
    claimed = claim(db, "worker", QUEUE, [job_id], 60.0)[job_id]
    values: dict[str, Any] = {"output": {"text": "secret"}, "error": None, "usage": None, "deltas": ("secret",)}
    values |= {"tenant_id": claimed.tenant_id} | changes
    assert finish(db, [Finish(job_id, claimed.epoch, state, **values)]) == {job_id}


def age(query: Query, seconds: float) -> None:
    query("UPDATE jobs SET completed_at = completed_at - make_interval(secs => :s)", s=seconds)


def audited(db: Database, tenant: str, action: str) -> list[tuple[Any, ...]]:
    found = [entry for entry in list_entries(db, tenant) if entry.action == action]
    return [(entry.resource, entry.actor, entry.detail, entry.request_id) for entry in found]


class TestErasing:
    @pytest.fixture
    def full(self, db: Database, tenant: str, accept_one: AcceptOne, query: Query, settings: Settings) -> str:
        """A failed job with contents in each place that can have them."""
        conversation = conversations.create(db, tenant, metadata={})
        job_id = accept_one(
            metadata={"a": "secret"},
            fingerprint="secret",
            webhook={"url": "https://example.com/secret"},
            fallback=Fallback({"input": "secret"}, 1, 1),
            response=NewResponse(
                None, True, False, [{"id": "m1"}], {"instructions": "secret"}, appends_to=conversation.id
            ),
            lookup=CacheLookup("d", 60.0),
        )
        approval = ask_approval(db, tenant, job_id)
        query("UPDATE tool_approvals SET reason = '\"secret\"' WHERE id = :id", id=approval)
        draft = open_blobs(settings).create()
        draft.write(b"content")
        file = files.create(db, tenant, draft, filename="a", purpose=Purpose.BATCH, most_bytes=100)
        query("UPDATE files SET job_id = :job WHERE id = :id", job=job_id, id=file.id)
        end(db, job_id, JobState.FAILED, error=ERROR)
        query(
            "INSERT INTO job_checkpoints (job_id, deltas, token_ids, lineage) VALUES (:id, '[]', '[]', '[]')", id=job_id
        )
        return job_id

    def rows(self, query: Query) -> dict[str, int]:
        names = (
            "job_fallbacks", "responses", "dead_letters", "files", "job_streams", "job_checkpoints", "cache_entries",
            "webhook_deliveries",
        )  # fmt: skip
        return {name: query(f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in names}

    def test_inputs_outputs_or_both(self, db: Database, full: str, accept_one: AcceptOne, query: Query) -> None:
        other = accept_one(fallback=Fallback({"input": "kept"}, 1, 1))
        assert self.rows(query) == {
            "job_fallbacks": 2,
            "responses": 1,
            "dead_letters": 1,
            "files": 1,
            "job_streams": 1,
            "job_checkpoints": 1,
            "cache_entries": 1,
            "webhook_deliveries": 1,
        }
        with db.begin() as connection:
            assert [erasure.erase_outputs(connection, [full, other]) for _ in range(2)] == [1, 0]
        streamless = {"job_streams": 0, "job_checkpoints": 0, "cache_entries": 0}
        kept = {"job_fallbacks": 2, "responses": 1, "dead_letters": 1, "files": 1, "webhook_deliveries": 1}
        assert self.rows(query) == kept | streamless
        (row,) = query(
            "SELECT output, error, payload, metadata, fingerprint, input_purged_at IS NULL AS has_input, "
            "output_purged_at IS NULL AS has_output FROM jobs WHERE id = :id",
            id=full,
        )
        error = {"code": "poison", "retryable": False, "attempt": 1, "message": Naming()}
        assert (row["output"], row["error"], row["has_input"], row["has_output"]) == (None, error, True, False)
        assert (row["metadata"], row["fingerprint"]) == ({"a": "secret"}, "secret")
        assert query("SELECT error FROM attempts") == [{"error": {"code": "poison"}}]
        assert query("SELECT reason FROM tool_approvals") == [{"reason": None}]
        with db.begin() as connection:
            assert [erasure.erase_inputs(connection, [full, other]) for _ in range(2)] == [1, 0]
        assert self.rows(query) == {
            "job_fallbacks": 1,
            "responses": 0,
            "dead_letters": 0,
            "files": 0,
            "webhook_deliveries": 1,
            **streamless,
        }
        (row,) = query("SELECT payload, metadata, webhook, fingerprint FROM jobs WHERE id = :id", id=full)
        assert row == {"payload": {}, "metadata": {}, "webhook": None, "fingerprint": None}
        (row,) = query("SELECT payload FROM jobs WHERE id = :id", id=other)
        assert row["payload"] != {}

    def test_all_of_it_with_deliveries_and_copies(
        self, db: Database, tenant: str, full: str, accept_one: AcceptOne, query: Query
    ) -> None:
        end(db, half := accept_one())
        waiting = accept_one()
        (row,) = query("SELECT id FROM conversations")
        conversations.add_items(db, tenant, row["id"], [{"id": "m1"}, {"id": "m2"}])
        query("UPDATE conversation_items SET response_id = :id WHERE id = 'm1'", id=response_id(full))
        with db.begin() as connection:
            erasure.erase_inputs(connection, [half])
            assert erasure.erase(connection, [full, half, waiting]) == 2
            assert erasure.erase(connection, [full, half, waiting]) == 0
        assert set(self.rows(query).values()) == {0}
        assert query("SELECT id FROM conversation_items") == [{"id": "m2"}]


class TestRequests:
    def test_a_job_is_erased_once_by_its_owner(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne
    ) -> None:
        done, waiting = accept_one(), accept_one()
        end(db, done)
        for owner in (other_tenant, tenant):
            job_id = done if owner == other_tenant else "job_x"
            with pytest.raises(NotFound, match=f"^no job {job_id}$"):
                erasure.purge_job(db, owner, job_id, actor="key_1")
        with pytest.raises(Conflict) as caught:
            erasure.purge_job(db, tenant, waiting, actor="key_1")
        assert (caught.value.message, caught.value.code) == (
            Naming(f"{waiting} is queued"),
            "job_not_ended",
        )
        erased = [erasure.purge_job(db, tenant, done, actor="key_1", request_id=f"req_{n}") for n in (1, 2)]
        assert erased == [True, False]
        assert audited(db, tenant, "job.purged") == [(done, "key_1", {}, "req_1")]
        with pytest.raises(Gone):
            get(db, tenant, done)

    def test_a_response_that_expires_is_hidden_until_the_last_later_one_goes(
        self, db: Database, accept_one: AcceptOne, query: Query
    ) -> None:
        new = NewResponse(None, True, False, [{"n": 1}], {"a": "b"})
        ids: list[str] = []
        for _ in range(3):
            before = response_id(ids[-1]) if ids else None
            ids.append(accept_one(response=replace(new, previous_id=before, goes_on=bool(ids))))
            end(db, ids[-1])
        with db.begin() as connection:
            assert erasure.erase_inputs(connection, ids[:2]) == 2
        rows = query("SELECT request, hidden_at IS NULL AS is_shown FROM responses ORDER BY job_id")
        assert [tuple(row.values()) for row in rows] == [({}, False), ({}, False), ({"a": "b"}, True)]
        with db.begin() as connection:
            erasure.erase_inputs(connection, ids[2:])
        assert query("SELECT job_id FROM responses") == []


class TestTimes:
    def test_each_kind_goes_after_its_own_time_and_none_in_the_first_minute(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        job_id = accept_one()
        end(db, job_id)
        age(query, 50)
        assert sweep(db, tenant, Retention(0, 0), 9) == ErasureCounts()
        age(query, 50)
        for kept in (Retention(), Retention(inputs_s=200), Retention(outputs_s=200), Retention(200, 200)):
            assert sweep(db, tenant, kept, 9) == ErasureCounts()
        assert sweep(db, tenant, Retention(90, 200), 9) == ErasureCounts(Counter(num_inputs=1))
        assert sweep(db, tenant, Retention(0, 90), 1) == ErasureCounts(
            Counter(num_outputs=1), job_ids=(job_id,), more=True
        )
        other = accept_one()
        end(db, other)
        age(query, 100)
        assert sweep(db, tenant, Retention(outputs_s=90), 9) == ErasureCounts(Counter(num_outputs=1), job_ids=(other,))
        third = accept_one()
        end(db, third)
        age(query, 100)
        both = ErasureCounts(Counter(num_inputs=1, num_outputs=1), job_ids=(third,), more=True)
        assert sweep(db, tenant, Retention(90, 80), 1) == both

    def test_marked_jobs_of_all_tenants_go_after_a_minute(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        ours, theirs = accept_one(is_stored=False), accept_one(is_stored=False, tenant_id=other_tenant)
        told = accept_one(is_stored=False, webhook={"url": "https://example.com/a"})
        for job_id in (ours, theirs, told, accept_one()):
            end(db, job_id)
        query("UPDATE jobs SET completed_at = now() - interval '70 s' WHERE id = :id", id=ours)
        query("UPDATE jobs SET completed_at = now() - interval '80 s' WHERE id <> :id", id=ours)
        expected = ErasureCounts(Counter(num_inputs=1, num_outputs=1), more=True)
        assert [sweep_marked(db, 1) for _ in range(3)] == [
            replace(expected, job_ids=(theirs,)),
            replace(expected, job_ids=(ours,)),
            ErasureCounts(),
        ]
        query("UPDATE webhook_deliveries SET state = 'failed'")
        assert sweep_marked(db, 9) == replace(expected, job_ids=(told,), more=False)

    def test_a_conversation_goes_after_the_shorter_time_since_its_last_use(
        self, db: Database, tenant: str, other_tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        old, used, busy = (conversations.create(db, tenant, metadata={}).id for _ in range(3))
        foreign = conversations.create(db, other_tenant, metadata={}).id
        new = NewResponse(None, True, False, [], {})
        job_id = accept_one(response=replace(new, appends_to=busy))
        query("UPDATE conversations SET used_at = now() - interval '100 s'")
        conversations.read_items(db, tenant, used)
        assert sweep(db, tenant, Retention(deliveries_s=0, files_s=0), 9).counts["num_conversations"] == 0
        assert sweep(db, tenant, Retention(inputs_s=110), 9).counts["num_conversations"] == 0
        assert sweep(db, tenant, Retention(outputs_s=90, inputs_s=500), 1) == ErasureCounts(
            Counter(num_conversations=1), more=True
        )
        assert {row["id"] for row in query("SELECT id FROM conversations")} == {used, busy, foreign}
        assert old not in (used, busy)
        request_cancel(db, tenant, job_id)
        assert sweep(db, tenant, Retention(inputs_s=90), 9).counts["num_conversations"] == 0, "its answer may be copied"
        age(query, 100)
        assert sweep(db, tenant, Retention(inputs_s=90), 9).counts["num_conversations"] == 1

    def test_deliveries_and_files_go_after_their_time(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        for _ in range(2):
            end(db, accept_one(webhook={"url": "https://example.com/a"}))
        query("UPDATE webhook_deliveries SET created_at = now() - interval '50 s'")
        assert sweep(db, tenant, Retention(deliveries_s=40), 9).counts["num_deliveries"] == 0, "they are pending"
        query("UPDATE webhook_deliveries SET state = 'failed'")
        assert sweep(db, tenant, Retention(deliveries_s=60), 9).counts["num_deliveries"] == 0
        assert sweep(db, tenant, Retention(deliveries_s=40), 9).counts["num_deliveries"] == 2


class TestValues:
    def test_the_shorter_of_two_and_the_default_of_what_is_not_set(self) -> None:
        ours, theirs = Retention(100, None, 30, 0), Retention(50, 70, None, 5)
        assert ours.shorter(theirs) == theirs.shorter(ours) == Retention(50, 70, 30, 0)
        assert ours.with_defaults(theirs) == Retention(100, 70, 30, 0)
        assert (ours.given(), Retention().given()) == ({"inputs_s": 100, "deliveries_s": 30, "files_s": 0}, {})
        layers = LayeredRetention(Retention(9, 9, 9, None), Retention(inputs_s=20, files_s=4), Retention(30, 3, 30, 30))
        assert layers.ceiling == Retention(20, 9, 9, 4)
        assert layers.effective == Retention(20, 3, 9, 4)

    @pytest.mark.parametrize("name", ["inputs_s", "outputs_s", "deliveries_s", "files_s"])
    def test_a_time_is_a_hundred_years_at_most(self, name: str) -> None:
        assert Retention(**{name: 36_500 * DAY_S}).given() == {name: 3_153_600_000}
        assert Retention(**{name: 0}).given() == {name: 0}
        for wrong in (-1, 36_500 * DAY_S + 1):
            with pytest.raises(InvalidRequest) as caught:
                Retention(**{name: wrong})
            assert (caught.value.message, caught.value.param) == (
                Naming("0 to 36500"),
                name.replace("_s", "_days"),
            )

    def test_a_tenant_may_not_keep_for_longer_than_the_operator_lets_it(self) -> None:
        ceiling = Retention(inputs_s=DAY_S * 3 // 2)
        retention.check_shorter(Retention(inputs_s=DAY_S * 3 // 2, outputs_s=10 * DAY_S), ceiling)
        with pytest.raises(InvalidRequest) as caught:
            retention.check_shorter(Retention(inputs_s=DAY_S * 3 // 2 + 1), ceiling)
        assert (caught.value.message, caught.value.param) == (
            Naming("`inputs_days`", "1.5"),
            "inputs_days",
        )

    def test_defaults_are_those_of_the_settings(self, settings: Settings) -> None:
        found = retention.defaults(
            settings.model_copy(
                update={"result_ttl_s": 10.4, "input_ttl_s": None, "delivery_ttl_s": 20.6, "file_ttl_s": 30.0}
            )
        )
        assert found == Retention(10, 10, 21, 30)
        shorter = settings.model_copy(update={"result_ttl_s": 10.0, "input_ttl_s": 0.0, "file_ttl_s": None})
        assert (retention.defaults(shorter).inputs_s, retention.defaults(shorter).files_s) == (0, None)

    def test_a_change_is_written_down_with_the_values_before(
        self, db: Database, tenant: str, other_tenant: str
    ) -> None:
        for wanted in (Retention(inputs_s=100, outputs_s=5), Retention(inputs_s=50)):
            retention.set_retention(db, tenant, wanted, set_by=SetBy.TENANT, actor="key_1", request_id="req_1")
        found = retention.read_retention(db, Retention(200, 200), tenant)
        assert (found.own, found.operator, found.default) == (Retention(inputs_s=50), Retention(), Retention(200, 200))
        assert retention.read_all(db, Retention(200, 200)) == {
            tenant: Retention(50, 200),
            other_tenant: Retention(200, 200),
        }
        details = [detail for _, _, detail, _ in audited(db, tenant, "retention.set")]
        assert details == [
            {"set_by": "tenant", "before": {"inputs_s": 100, "outputs_s": 5}, "after": {"inputs_s": 50}},
            {"set_by": "tenant", "before": None, "after": {"inputs_s": 100, "outputs_s": 5}},
        ]


class TestPurges:
    def test_the_scope_is_written_down_without_the_users_name(self, db: Database, tenant: str) -> None:
        before = datetime(2026, 1, 2, tzinfo=UTC)
        keyed = Digests([b"k" * 32])
        plain = {"of_user": False, "user_digest": None, "before": None}
        assert Scope(tenant).audit_fields(keyed) == plain
        assert Scope(tenant, "ann").audit_fields(Digests()) == plain | {"of_user": True}
        found = Scope(tenant, "ann", before).audit_fields(keyed)
        assert (found["of_user"], found["before"]) == (True, "2026-01-02T00:00:00+00:00")
        assert found["user_digest"] == keyed.of("name", b"ann")[0]
        record_purge(db, Scope(tenant), "contents.purged", {"jobs": 3}, digests=keyed, actor="operator")
        assert audited(db, tenant, "contents.purged") == [(tenant, "operator", plain | {"jobs": 3}, None)]

    def test_a_step_says_where_the_next_one_begins(
        self, db: Database, tenant: str, accept_one: AcceptOne, query: Query
    ) -> None:
        ids = [accept_one(user_id="ann") for _ in range(3)]
        for job_id in ids:
            end(db, job_id)
        scope = Scope(tenant, "ann")
        assert purge_step(db, "jobs", scope, limit=2) == PurgeStep(2, ids[1], (ids[0], ids[1]))
        assert purge_step(db, "jobs", scope, after=ids[1], limit=2) == PurgeStep(1, ids[2], (ids[2],))
        assert purge_step(db, "jobs", scope, after=ids[2], limit=2) == PurgeStep(0, None)
        assert purge_step(db, "files", scope, limit=2) == PurgeStep(0, None)
        for _ in range(2):
            conversations.create(db, tenant, metadata={})
        steps = [purge_step(db, "conversations", Scope(tenant), limit=1) for _ in range(3)]
        assert steps == [PurgeStep(1, ""), PurgeStep(1, ""), PurgeStep(0, None)]
        assert purge_step(db, "batches", Scope(tenant), limit=1) == PurgeStep(0, None)
