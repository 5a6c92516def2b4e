"""Policies: versions of each model's own, also when many are put at once."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from store.db.database import Database
from store.errors import NotFound
from store.registry.policies import get_version, list_policies, put


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
