"""Shadow mode on real rows: which jobs get a mirror, what their callers see of it, and what the judge learns."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from headrace.features.rollouts.bounds import Bounds
from headrace.features.rollouts.evidence import Evidence
from headrace.features.rollouts.judge import judge
from headrace.features.rollouts.metrics import RolloutMetrics
from headrace.features.rollouts.rollout_keeper import RolloutKeeper
from headrace.features.rollouts.rollouts import Rollout, RolloutMode, Step, get_rollout
from headrace.features.rollouts.shadow import agreement, check_shadow, look
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.jobs.jobs import list_jobs
from headrace.store.schema.job_states import JobState
from headrace.store.tenants.api_keys import create_tenant
from tests.refusals import Naming
from tests.store.making import AcceptOne, Query

SEALED = '{"enc": {"k": "lost", "w": "", "d": ""}}'
GREEDY = {"input": {"prompt": "hello"}, "sampling": {"max_tokens": 4, "temperature": 0}}


@pytest.fixture
def shadow_tenant(db: Database) -> str:
    return create_tenant(db, "shadow")


@pytest.fixture
def rollout(begin: Callable[..., Rollout]) -> Rollout:
    return begin(mode=RolloutMode.SHADOW, steps=[Step(100, hold_s=3600)])


class Shadow:
    """Ends stable jobs and mirrors, and looks as the dispatcher does: each look goes on where the last one ended."""

    def __init__(self, db: Database, rollout: Rollout, accept_one: AcceptOne, query: Query, tenant_id: str) -> None:
        self._db, self.rollout, self._accept_one, self._query = db, rollout, accept_one, query
        self.tenant_id = tenant_id
        self.evidence = Evidence()

    def answer(self, text: str, *, payload: dict[str, Any] = GREEDY, **changes: Any) -> str:
        job_id = self._accept_one(rollout_id=self.rollout.id, payload=payload, **changes)
        self._end(job_id, 1, text)
        return job_id

    def end_mirror(self, text: str) -> None:
        (mirror,) = (row["id"] for row in self.mirrors() if row["state"] == JobState.QUEUED)
        self._end(mirror, 2, text)

    def mirrors(self) -> list[dict[str, Any]]:
        return self._query("SELECT * FROM jobs WHERE tenant_id = :tenant ORDER BY id", tenant=self.tenant_id)

    def let_a_second_pass(self) -> None:
        """Ends of the last second are left for the next look."""
        self._query("""
            UPDATE jobs SET completed_at = completed_at - interval '2 seconds'
            WHERE completed_at > clock_timestamp() - interval '2 seconds'""")

    def look(self, *sources: str) -> Evidence:
        self.let_a_second_pass()
        known = replace(self.rollout, evidence={"counts": self.evidence.as_json()})
        self.evidence = look(self._db, known, self.tenant_id, sources)
        return self.evidence

    def _end(self, job_id: str, version: int, text: str) -> None:
        held = claim(self._db, "worker", f"tiny@{version}", [job_id], 60)[job_id]
        usage = {"input_tokens": 5, "output_tokens": 4, "queue_ms": 1.0, "first_token_ms": 9.0, "compute_ms": 20.0}
        assert finish(self._db, [Finish(job_id, held.epoch, JobState.SUCCEEDED, {"text": text}, None, usage, ())])


@pytest.fixture
def shadow(db: Database, rollout: Rollout, accept_one: AcceptOne, query: Query, shadow_tenant: str) -> Shadow:
    query("UPDATE rollouts SET started_at = started_at - interval '1 minute'")
    started = replace(rollout, started_at=query("SELECT started_at FROM rollouts")[0]["started_at"])
    return Shadow(db, started, accept_one, query, shadow_tenant)


def test_a_mirror_is_made_once_and_its_caller_sees_nothing_of_it(
    db: Database, tenant: str, rollout: Rollout, shadow: Shadow, query: Query
) -> None:
    original = shadow.answer("one two three")
    shadow.look(tenant)
    (mirror,) = shadow.mirrors()
    assert (mirror["queue"], mirror["class_rank"], mirror["priority"]) == ("tiny@2", 2, 9)
    assert (mirror["rollout_id"], mirror["purge_when_ended"]) == (rollout.id, True)
    assert json.loads(mirror["payload"]) == GREEDY
    assert (mirror["webhook"], mirror["max_attempts"], mirror["metadata"], mirror["announced_at"]) == (
        {"events": []},
        2,
        {},
        None,
    )
    assert (mirror["api_key_id"], mirror["user_id"], mirror["model"], mirror["model_version"]) == (
        None,
        None,
        "tiny",
        2,
    )
    assert (mirror["deadline_at"] - mirror["created_at"]).total_seconds() == 600
    shadow.end_mirror("one two four")
    shadow.look(tenant)
    shadow.evidence.mirrored_until = None
    shadow.look(tenant)
    assert len(shadow.mirrors()) == 1, "a look that is repeated makes no second mirror"
    assert [job.id for job in list_jobs(db, tenant)] == [original]
    assert query("SELECT DISTINCT tenant_id FROM usage_ledger WHERE model_version = 2") == [
        {"tenant_id": shadow.tenant_id}
    ]
    assert query("SELECT * FROM webhook_deliveries") == []


def test_the_judge_gets_the_disagreement_of_the_answers(tenant: str, shadow: Shadow) -> None:
    for stable, candidate in (("one two three", "one two three"), ("one two three", "one 2 three")):
        shadow.answer(stable)
        shadow.look(tenant)
        shadow.end_mirror(candidate)
        shadow.look(tenant)
    found = shadow.evidence.measures["disagreement"]
    assert found.own == {0.0: 1, 0.6: 1}
    checks = {check.name: check for check in judge(shadow.evidence, Bounds()).checks}
    assert checks["errors"].num_pairs == checks["longer_answers"].num_pairs == 2
    assert checks["token_time"].num_pairs == 0, "the two ran in different classes"


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": {**GREEDY, "sampling": {"temperature": 0.7}}},
        {"payload": {**GREEDY, "sampling": {"max_tokens": 4}}},
        {"payload": {**GREEDY, "n": 2}},
        {"payload": {**GREEDY, "input": {"prompts": ["a"]}}},
        {"payload": {**GREEDY, "tool_style": "json"}},
        {"payload": {**GREEDY, "reasoning": {"start": "<"}}},
        {"payload": {**GREEDY, "policy": {"version": 1}}},
        {"is_stored": False},
    ],
    ids=["sampled", "default", "choices", "prompts", "tools", "reasoning", "policy", "not-stored"],
)
def test_what_cannot_be_compared_or_must_not_be_copied_gets_no_mirror(
    tenant: str, shadow: Shadow, changes: dict[str, Any]
) -> None:
    shadow.answer("one", **changes)
    assert shadow.look(tenant).mirrored_until is not None or "is_stored" in changes
    assert shadow.mirrors() == []


def test_only_tenants_that_are_named_are_mirrored(tenant: str, shadow: Shadow) -> None:
    shadow.answer("one")
    shadow.look("ten_other")
    assert shadow.mirrors() == []
    shadow.evidence.mirrored_until = None
    shadow.look("*")
    assert len(shadow.mirrors()) == 1


def test_the_dispatcher_makes_mirrors_and_stores_what_they_show(
    db: Database, tenant: str, rollout: Rollout, shadow: Shadow
) -> None:
    keeper = RolloutKeeper(
        db, RolloutMetrics(CollectorRegistry()), shadow_tenant=shadow.tenant_id, shadow_sources=(tenant,)
    )
    for answer in ("one", "two"):
        shadow.answer(answer)
        shadow.let_a_second_pass()
        keeper.turn()
        shadow.end_mirror("one")
        shadow.let_a_second_pass()
        keeper.turn()
    evidence = get_rollout(db, rollout.id).evidence
    shown = {check["name"]: (check["num_pairs"], check["candidate"]) for check in evidence["checks"]}
    assert shown["disagreement"] == (2, 0.5)
    assert shown["token_time"] == (0, None)


def test_shadow_mode_needs_a_tenant_that_exists_and_sources(db: Database, tenant: str, shadow_tenant: str) -> None:
    check_shadow(db, shadow_tenant, [tenant])
    for owner, sources in (("", [tenant]), (shadow_tenant, []), ("ten_unknown", [tenant])):
        with pytest.raises(InvalidRequest, match="HEADRACE_SHADOW_TENANT"):
            check_shadow(db, owner, sources)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("", "", 1.0),
        ("A b, c.", "A  b, c.", 1.0),
        ("one two three four", "one two 3 four", 0.5),
        ("one two", "one two three four", 0.5),
        ("yes", "no", 0.0),
        ("", "no", 0.0),
    ],
)
def test_agreement_is_the_common_beginning(one: str, other: str, share: float) -> None:
    assert agreement(one, other) == agreement(other, one) == share


def test_contents_that_cannot_be_opened_get_no_mirror(tenant: str, shadow: Shadow, query: Query) -> None:
    hidden = shadow.answer("one")
    query("UPDATE jobs SET payload = :sealed WHERE id = :id", sealed=SEALED, id=hidden)
    shown = shadow.answer("two")
    shadow.look(tenant)
    assert [json.loads(row["payload"]) for row in shadow.mirrors()] == [GREEDY]
    (link,) = query("SELECT key FROM idempotency_keys WHERE route = 'shadow'")
    assert link["key"] == shown


def test_a_look_makes_at_most_fifty_mirrors_and_goes_on_behind_the_last(
    tenant: str, shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.features.rollouts.shadow.MOST_PER_TURN", 2)
    for number in range(3):
        shadow.answer(str(number))
    assert [len(shadow.mirrors()) for _ in range(3) if shadow.look(tenant)] == [2, 3, 3]


def test_nothing_is_mirrored_while_many_mirrors_wait(
    tenant: str, shadow: Shadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.features.rollouts.shadow.MOST_WAITING", 1)
    shadow.answer("one")
    shadow.look(tenant)
    shadow.answer("two")
    shadow.look(tenant)
    assert len(shadow.mirrors()) == 1
    shadow.end_mirror("one")
    shadow.look(tenant)
    assert len(shadow.mirrors()) == 2


def test_refusals_of_shadow_mode_name_the_settings(db: Database) -> None:
    with pytest.raises(InvalidRequest) as none_given:
        check_shadow(db, "", [])
    with pytest.raises(InvalidRequest) as unknown:
        check_shadow(db, "ten_x", ["*"])
    assert [(error.value.message, error.value.param) for error in (none_given, unknown)] == [
        (Naming("HEADRACE_SHADOW_TENANT", "HEADRACE_SHADOW_SOURCES"), "mode"),
        (Naming("HEADRACE_SHADOW_TENANT", "ten_x"), "mode"),
    ]


def test_only_the_rollouts_share_of_fresh_computed_answers_is_mirrored(
    tenant: str, shadow: Shadow, query: Query
) -> None:
    ids = [shadow.answer(str(number)) for number in range(4)]
    query("UPDATE jobs SET cache = 'hit', cache_source = 'job_1' WHERE id = :id", id=ids[0])
    query("UPDATE jobs SET task = 'embed' WHERE id = :id", id=ids[1])
    query("UPDATE jobs SET completed_at = now() - interval '70 s' WHERE id = :id", id=ids[2])
    shadow.look(tenant)
    assert query("SELECT key FROM idempotency_keys WHERE route = 'shadow'") == [{"key": ids[3]}]


def test_a_small_share_mirrors_no_other_job(tenant: str, shadow: Shadow) -> None:
    shadow.rollout = replace(shadow.rollout, steps=(Step(1e-9, hold_s=3600),))
    shadow.answer("one")
    assert shadow.look(tenant).mirrored_until is not None
    assert shadow.mirrors() == []
