"""The lease of a verification, and the verdict, which its holder alone writes."""

import pytest

from headrace.store.audit_log import hash_of, list_entries
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.registry.quality_bounds import read_bound, set_bound
from headrace.store.registry.quality_report import QualityBound
from headrace.store.registry.verification import Verification, VersionStanding
from headrace.store.registry.verification_report import GoldenAnswer, VerificationReport, golden_answers, stored_golden
from headrace.store.registry.versions import VersionSummary, list_versions
from headrace.store.schema.version_states import VersionState
from tests.store.making import Query
from tests.store.registry.test_models import register

REPORT = VerificationReport(worker="w1", dtype="float32", load_s=1.5)


def two(db: Database) -> tuple[Verification, Verification]:
    """A version to be verified, with neighbours, and two workers that want to."""
    register(db, runner="torch")
    register(db, runner="torch", digest="d2")
    register(db, model="other", runner="torch")
    return (
        Verification(db, "tiny", 1, worker="w1", lease_s=60),
        Verification(db, "tiny", 1, worker="w2", lease_s=60),
    )


def shown(db: Database) -> VersionSummary:
    second, first = list_versions(db, "tiny")
    for one in (second, *list_versions(db, "other")):
        assert (one.state, one.state_reason, one.verification) == (VersionState.REGISTERED, None, None)
    return first


def test_the_lease_belongs_to_one_worker_until_it_is_over(db: Database, query: Query) -> None:
    first, second = two(db)
    bound = QualityBound(max_kl=0.5)
    set_bound(db, "tiny", bound, "mia")
    registered = VersionState.REGISTERED
    assert first.claim() == VersionStanding(registered, None, (), is_ours=True, bound=bound)
    assert shown(db).state is VersionState.VERIFYING
    assert second.claim() == VersionStanding(registered, None, (), is_ours=False, bound=bound)
    assert first.claim().is_ours, "it has the lease already"
    assert (first.renew(), second.renew()) == (True, False)
    of_tiny = "WHERE model = 'tiny' AND version = 1"
    lease = f"SELECT extract(epoch FROM verifying_until - now()) AS s FROM model_versions {of_tiny}"
    assert 0 < query(lease)[0]["s"] <= 60
    second.give_up("not mine")
    assert (second.accept(REPORT), second.reject("no", REPORT)) == (False, False)
    assert shown(db).state is VersionState.VERIFYING
    query(f"UPDATE model_versions SET verifying_until = now() {of_tiny}")
    assert second.claim().is_ours, "the lease was over"
    assert (first.renew(), first.accept(REPORT), second.renew()) == (False, False, True)
    second.give_up("no memory")
    left = shown(db)
    assert (left.state, left.state_reason) == (registered, "no memory")
    assert first.claim() == VersionStanding(registered, "no memory", (), is_ours=True, bound=bound)


def test_the_verdict_is_written_once_and_is_on_record(db: Database, query: Query) -> None:
    first, second = two(db)
    first.claim()
    assert first.reject("a wrong answer", REPORT)
    found = shown(db)
    assert (found.state, found.state_reason, found.verification) == (VersionState.REJECTED, "a wrong answer", REPORT)
    assert found.state_at > found.created_at
    assert not first.accept(REPORT)
    second.accept_server("vllm")
    assert shown(db).state is VersionState.REJECTED
    register(db, runner="torch")
    again = shown(db)
    assert (again.state, again.state_reason, again.verification) == (VersionState.REGISTERED, None, None)
    second.claim()
    assert second.accept(REPORT)
    assert second.claim() == VersionStanding(VersionState.READY, None, (), is_ours=False)
    second.accept_server("vllm")
    assert shown(db).verification == REPORT, "a version that is ready stays as it is"
    told = query("SELECT actor, action, resource, detail FROM audit_log WHERE actor LIKE 'w_' ORDER BY id")
    assert told == [
        {"actor": "w1", "action": "model.rejected", "resource": "tiny@1", "detail": {"reason": "a wrong answer"}},
        {"actor": "w2", "action": "model.ready", "resource": "tiny@1", "detail": {}},
    ]
    with pytest.raises(NotFound, match="tiny@9 was deleted") as gone:
        Verification(db, "tiny", 9, worker="w1", lease_s=1).claim()
    assert gone.value.code == "model_not_found"


def test_an_accepted_server_is_on_record(db: Database, query: Query) -> None:
    first, second = two(db)
    second.claim()
    first.accept_server("vllm 0.9")
    assert shown(db).verification == VerificationReport(worker="w1", server="vllm 0.9")
    assert not second.renew()
    told = query("SELECT actor, action, detail FROM audit_log WHERE actor = 'w1'")
    assert told == [{"actor": "w1", "action": "model.ready", "detail": {"server": "vllm 0.9"}}]


ANSWER = {"prompt": "a", "tokens": [0, 2**31 - 1]}


def test_golden_answers_of_an_operator_are_read_and_stored() -> None:
    found = golden_answers([ANSWER] * 16)
    assert found == (GoldenAnswer(prompt="a", tokens=(0, 2**31 - 1)),) * 16
    assert stored_golden(found[:1]) == '[{"prompt":"a","tokens":[0,2147483647]}]'
    assert stored_golden([]) is None
    assert golden_answers([{"prompt": "p" * 4000, "tokens": [1] * 64}])[0].tokens == (1,) * 64


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ([], "list: .* 1 item"),
        ([ANSWER] * 17, "list: .* 16 items"),
        ([ANSWER, {"prompt": "", "tokens": [1]}], "1.prompt: .* 1 character"),
        ([{"prompt": "p" * 4001, "tokens": [1]}], "0.prompt: .* 4000 characters"),
        ([{"prompt": "a", "tokens": []}], "0.tokens: .* 1 item"),
        ([{"prompt": "a", "tokens": [1] * 65}], "0.tokens: .* 64 items"),
        ([{"prompt": "a", "tokens": [-1]}], "0.tokens.0: .* 0"),
        ([{"prompt": "a", "tokens": [2**31]}], "0.tokens.0: .* 2147483648"),
        ([ANSWER | {"more": 1}], "0.more: "),
    ],
)
def test_golden_answers_that_cannot_be_compared_are_refused(given: object, place: str) -> None:
    with pytest.raises(InvalidRequest, match=f'"tokens": .*: {place}') as refused:
        golden_answers(given)
    assert refused.value.param == "golden"


def test_a_bound_is_on_record_with_both_states(db: Database, tenant: str) -> None:
    register(db)
    register(db, model="other")
    loose, strict = QualityBound(max_kl=0.5), QualityBound(min_agreement=0.9, max_kl=0.25)
    for bound in (loose, strict, None):
        set_bound(db, "tiny", bound, "mia", tenant_id=tenant)
        assert (read_bound(db, "tiny"), read_bound(db, "other")) == (bound, None)
    hashes = [None, hash_of({"max_kl": 0.5}), hash_of({"min_agreement": 0.9, "max_kl": 0.25}), None]
    told = [(e.resource, e.detail, e.before_hash, e.after_hash) for e in reversed(list_entries(db, tenant, 3))]
    assert told == [
        ("tiny", {"max_kl": "0.5"}, hashes[0], hashes[1]),
        ("tiny", {"min_agreement": "0.9", "max_kl": "0.25"}, hashes[1], hashes[2]),
        ("tiny", {}, hashes[2], hashes[3]),
    ]
    with pytest.raises(NotFound, match="no model 'nobody'"):
        set_bound(db, "nobody", loose, "mia")
