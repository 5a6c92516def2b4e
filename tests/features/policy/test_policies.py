"""Policies: versions of each model's own, also when many are put at once."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from headrace.features.policy import policies
from headrace.features.policy.policies import get_version, list_policies, put
from headrace.store.audit_log import hash_of, list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, NotFound


def test_policies_that_are_put_at_once_are_numbered_without_a_hole(db: Database, tenant: str) -> None:
    barrier = Barrier(6)

    def race(number: int) -> int:
        barrier.wait(10)
        return put(db, tenant, "tiny", {"number": number}, "mia").version

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(race, range(6), timeout=30)) == [1, 2, 3, 4, 5, 6]


def test_versions_are_a_models_and_a_tenants_own(db: Database, tenant: str, other_tenant: str) -> None:
    for number, (owner, model) in enumerate([(tenant, ""), (tenant, "tiny"), (tenant, ""), (other_tenant, "")]):
        put(db, owner, model, {"number": number}, "mia")
    assert [(one.model, one.version, one.document["number"]) for one in list_policies(db, tenant)] == [
        ("", 2, 2),
        ("tiny", 1, 1),
    ]
    assert get_version(db, tenant, "", 1) == {"number": 0}
    for model, version in (("tiny", 2), ("other", 1), ("", 3)):
        with pytest.raises(NotFound):
            get_version(db, tenant, model, version)
    assert [one.version for one in list_policies(db, other_tenant)] == [1]


def test_policies_have_a_most_and_are_on_record(
    db: Database, tenant: str, other_tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(db, other_tenant, "far", {}, "mia")
    put(db, other_tenant, "tiny", {"n": 9}, "mia")
    monkeypatch.setattr(policies, "MAX_MODELS", 2)
    for model, number in (("", 1), ("tiny", 2), ("tiny", 3)):
        put(db, tenant, model, {"n": number}, "mia")
    with pytest.raises(Conflict) as refused:
        put(db, tenant, "more", {}, "mia")
    assert "2 models" in refused.value.message
    monkeypatch.setattr(policies, "MAX_VERSIONS", 3)
    with pytest.raises(Conflict, match=r"versions .* 3 with [1-9][0-9]* bytes, .* 3 with 67108864"):
        put(db, tenant, "tiny", {}, "mia")
    monkeypatch.setattr(policies, "MAX_VERSIONS", 9)
    monkeypatch.setattr(policies, "MAX_BYTES", 1)
    with pytest.raises(Conflict):
        put(db, tenant, "tiny", {}, "mia")
    with pytest.raises(NotFound, match=r"every model .* 2"):
        get_version(db, tenant, "", 2)
    told = [(e.actor, e.action, e.resource, e.detail, e.before_hash, e.after_hash) for e in list_entries(db, tenant, 3)]
    hashes = [hash_of({"n": number}) for number in (1, 2, 3)]
    assert told[::-1] == [
        ("mia", "policy.put", "policy:*", {"version": 1}, None, hashes[0]),
        ("mia", "policy.put", "policy:tiny", {"version": 1}, None, hashes[1]),
        ("mia", "policy.put", "policy:tiny", {"version": 2}, hashes[1], hashes[2]),
    ]
