from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from headrace.store.db.database import Database
from headrace.store.errors import Conflict, HeadraceError, NotFound, PreconditionFailed
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry import versions
from headrace.store.registry.models import get_version, list_models, read_file, resolve, set_sampling
from tests.store.making import AcceptOne, Query
from tests.store.registry.test_models import register


def test_an_alias_moves_only_from_where_the_caller_saw_it(db: Database) -> None:
    for digest in ("d1", "d2", "d3"):
        register(db, digest=digest)
    versions.set_alias(db, "tiny", "stable", 1, "test", expected=0)
    versions.set_alias(db, "tiny", "stable", 2, "test", expected=1)
    for seen in (0, 1, 3):
        with pytest.raises(PreconditionFailed, match="names version 2") as refused:
            versions.set_alias(db, "tiny", "stable", 3, "test", expected=seen)
        assert refused.value.code == "alias_changed"
    with pytest.raises(PreconditionFailed, match="not exist"):
        versions.set_alias(db, "tiny", "other", 3, "test", expected=1)
    assert resolve(db, "tiny@stable").version == 2


def test_an_alias_is_removed_but_not_the_default(db: Database) -> None:
    register(db)
    versions.set_alias(db, "tiny", "stable", 1, "test")
    with pytest.raises(PreconditionFailed):
        versions.remove_alias(db, "tiny", "stable", "test", expected=2)
    versions.remove_alias(db, "tiny", "stable", "test", expected=1)
    with pytest.raises(NotFound, match="no alias"):
        versions.remove_alias(db, "tiny", "stable", "test")
    with pytest.raises(Conflict):
        versions.remove_alias(db, "tiny", "default", "test")
    assert list_models(db)[0].aliases == {"default": 1}


def test_a_version_that_an_alias_names_is_not_retired(db: Database, query: Query) -> None:
    register(db)
    register(db, digest="d2")
    with pytest.raises(Conflict, match="tiny@default"):
        versions.retire(db, "tiny", 1, "test")
    versions.set_alias(db, "tiny", "default", 2, "test")
    versions.retire(db, "tiny", 1, "test")
    versions.retire(db, "tiny", 1, "test")
    with pytest.raises(NotFound):
        resolve(db, "tiny@1")
    register(db, digest="d3")
    versions.retire(db, "tiny", 3, "test")
    for _ in range(2):
        versions.revive(db, "tiny", 1, "test")
    assert resolve(db, "tiny@1").digest == "d1"
    with pytest.raises(NotFound):
        resolve(db, "tiny@3")
    rows = query("SELECT action FROM audit_log WHERE action <> 'model.registered' ORDER BY id")
    assert [row["action"] for row in rows] == [
        "model.alias_set",
        "model.retired",
        "model.retired",
        "model.revived",
    ], "once each"


def test_an_alias_and_a_retirement_at_once_never_meet(db: Database) -> None:
    register(db)
    for number in range(2, 12):
        register(db, digest=f"d{number}")
        barrier = Barrier(2)

        def at_once(change: str, number: int = number, barrier: Barrier = barrier) -> None:
            barrier.wait(10)
            try:
                if change == "alias":
                    versions.set_alias(db, "tiny", "next", number, "test")
                else:
                    versions.retire(db, "tiny", number, "test")
            except (NotFound, Conflict):
                return

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(at_once, ["alias", "retire"], timeout=30))
        (summary,) = [one for one in versions.list_versions(db, "tiny") if one.version == number]
        assert (summary.retired_at is None) == ("next" in summary.aliases)


def test_versions_are_listed_with_what_names_them_and_what_waits(db: Database, accept_one: AcceptOne) -> None:
    register(db)
    register(db, digest="d2")
    register(db, model="other")
    accept_one(model="tiny")
    versions.set_alias(db, "tiny", "stable", 1, "test")
    versions.retire(db, "tiny", 2, "test")
    second, first = versions.list_versions(db, "tiny")
    assert (first.aliases, first.num_queued, first.retired_at, first.engine.kind) == (
        ("default", "stable"),
        1,
        None,
        "native",
    )
    assert (second.version, second.aliases, second.num_queued) == (2, (), 0)
    assert second.retired_at is not None
    assert [one.model for one in versions.list_versions(db)] == ["other", "tiny", "tiny"]
    assert versions.list_versions(db, "nobody") == []


def test_a_version_is_deleted_when_nothing_uses_it_and_its_number_stays_used(
    db: Database, accept_one: AcceptOne, query: Query
) -> None:
    shared, own = b"both have it", b"the second one has it"
    register(db, files={"a": shared})
    second = register(db, digest="d2", files={"a": shared, "b": own})
    job = accept_one(model="tiny", model_version=2)

    def refused(match: str) -> None:
        with pytest.raises(Conflict, match=match) as error:
            versions.delete_version(db, "tiny", 2, "test")
        assert error.value.code == "version_in_use"

    refused("retire")
    versions.retire(db, "tiny", 2, "test")
    refused("jobs")
    query("DELETE FROM jobs WHERE id = :id", id=job)
    versions.delete_version(db, "tiny", 2, "test")
    with pytest.raises(NotFound):
        versions.delete_version(db, "tiny", 2, "test")
    with pytest.raises(HeadraceError):
        read_file(db, second.files["b"])
    assert read_file(db, second.files["a"]) == shared
    assert register(db, digest="d3").version == 3


def test_a_change_of_a_version_is_of_no_other_model(db: Database, accept_one: AcceptOne) -> None:
    sampling = SamplingDefaults(top_k=5)
    for model in ("tiny", "other"):
        for digest in ("d1", "d2"):
            register(db, model=model, digest=digest)
        versions.set_alias(db, model, "stable", 1, "test")
        set_sampling(db, model, 2, sampling, "test")
    accept_one(model="other", model_version=2, queue="other@2")
    versions.remove_alias(db, "tiny", "stable", "test")
    versions.retire(db, "tiny", 2, "test")
    listed = [(one.version, one.aliases, one.retired_at, one.num_queued) for one in versions.list_versions(db, "other")]
    assert listed == [(2, (), None, 1), (1, ("default", "stable"), None, 0)]
    versions.retire(db, "other", 2, "test")
    versions.revive(db, "tiny", 2, "test")
    assert [one.retired_at is None for one in versions.list_versions(db, "other")] == [False, True]
    versions.retire(db, "tiny", 2, "test")
    versions.delete_version(db, "tiny", 2, "test")
    kept = [get_version(db, model, version) for model, version in (("tiny", 1), ("other", 1), ("other", 2))]
    assert [one.sampling for one in kept] == [SamplingDefaults(), SamplingDefaults(), sampling]
    assert register(db, digest="d3").version == 3
    assert register(db, model="other", digest="d3").version == 3
