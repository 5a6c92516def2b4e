import hashlib
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from headrace.store.audit_log import hash_of, list_entries
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.registry.models import (
    ModelVersion,
    get_version,
    list_models,
    queue_name,
    read_file,
    register_version,
    resolve,
    shadow_name,
)
from headrace.store.registry.versions import retire, set_alias
from tests.store.making import Query


def register(db: Database, **changes: Any) -> ModelVersion:
    values: dict[str, Any] = {
        "model": "tiny",
        "runner": "fake",
        "source": "built in",
        "digest": "d1",
        "dtype": "float32",
        "context_window": 2048,
        "files": {"tokenizer.json": b"{}"},
        "actor": "test",
    }
    return register_version(db, **{**values, **changes})


def test_a_version_comes_back_as_it_was_registered(db: Database) -> None:
    files = {"tokenizer.json": b"\x00\xff binary", "config.json": b"{}"}
    version = register(db, files=files)
    assert (version.model, version.version, version.runner, version.source) == ("tiny", 1, "fake", "built in")
    assert (version.digest, version.dtype, version.context_window) == ("d1", "float32", 2048)
    assert version.files == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert version.retired_at is None
    assert {name: read_file(db, digest) for name, digest in version.files.items()} == files
    assert get_version(db, "tiny", 1) == resolve(db, "tiny") == version


def test_the_same_weights_are_the_same_version(db: Database) -> None:
    first = register(db)
    assert register(db, source="elsewhere") == first
    assert register(db, model="small").version == 1, "of its own model"
    assert register(db, dtype="bfloat16").version == 2
    assert register(db, digest="d2").version == 3
    assert register(db, digest="d2").version == 3


def test_racing_registrations_number_the_versions_without_a_hole(db: Database) -> None:
    barrier = Barrier(8)

    def race(n: int) -> int:
        barrier.wait(10)
        return register(db, digest=f"d{n % 4}", files={f"f{n % 3}": b"same"}).version

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(race, range(8), timeout=30))
    assert sorted(versions) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert list_models(db)[0].versions == [4, 3, 2, 1]


def test_a_model_string_names_a_version_by_number_or_alias(db: Database) -> None:
    for digest in ("d1", "d2", "d3"):
        register(db, digest=digest)
    register(db, model="HuggingFaceTB/other", digest="d9")
    set_alias(db, "tiny", "canary", 3, "test")
    set_alias(db, "HuggingFaceTB/other", "canary", 1, "test")
    names = ["tiny", "tiny@default", "tiny@1", "tiny@2", "tiny@canary", "HuggingFaceTB/other"]
    assert [resolve(db, name).version for name in names] == [1, 1, 1, 2, 3, 1]
    set_alias(db, "tiny", "default", 2, "test")
    set_alias(db, "tiny", "canary", 1, "test")
    assert [resolve(db, name).version for name in ("tiny", "tiny@canary")] == [2, 1]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nobody",
        "tiny@",
        "tiny@9",
        "tiny@0",
        "tiny@-1",
        "tiny@latest",
        "@1",
        "tiny@1@1",
        "tiny@9999999999",
        "tiny@²",
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(db: Database, name: str) -> None:
    register(db)
    register(db, model="small")
    with pytest.raises(NotFound, match="known: small, tiny") as unknown:
        resolve(db, name)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


def test_without_models_it_says_so(db: Database) -> None:
    assert list_models(db) == []
    with pytest.raises(NotFound, match="none"):
        resolve(db, "tiny")


def test_a_retired_version_takes_no_traffic_and_is_still_told(db: Database) -> None:
    register(db)
    second = register(db, digest="d2")
    retire(db, "tiny", 2, "test")
    with pytest.raises(NotFound):
        resolve(db, "tiny@2")
    assert resolve(db, "tiny@2", with_retired=True).digest == "d2", "for a worker that runs its last jobs"
    with pytest.raises(NotFound, match="retired"):
        set_alias(db, "tiny", "default", 2, "test")
    assert get_version(db, "tiny", 2).digest == second.digest
    assert list_models(db)[0].versions == [1]
    assert register(db, digest="d2").version == 3, "brought back as a new version"


def test_models_are_listed_with_their_aliases(db: Database) -> None:
    register(db)
    register(db, digest="d2")
    register(db, model="embedder", runner="fake-encoder")
    set_alias(db, "tiny", "canary", 2, "test")
    embedder, tiny = list_models(db)
    assert (embedder.name, embedder.task, embedder.aliases) == ("embedder", "embed", {"default": 1})
    assert (tiny.name, tiny.aliases, tiny.versions) == ("tiny", {"default": 1, "canary": 2}, [2, 1])


@pytest.mark.parametrize(
    "model", ["", "a@b", "-x", "a b", "a\nb", "ü", "x" * 129, "a/../b", "a..", "a//b", "a/.b", "a/"]
)
def test_a_name_that_a_model_string_could_not_carry_is_refused(db: Database, model: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        register(db, model=model)
    assert refused.value.param == "model"


@pytest.mark.parametrize("alias", ["", "3", "a@b", "a b"])
def test_an_alias_that_is_a_number_or_no_word_is_refused(db: Database, alias: str) -> None:
    register(db)
    with pytest.raises(InvalidRequest):
        set_alias(db, "tiny", alias, 1, "test")


def test_a_model_keeps_its_task(db: Database) -> None:
    register(db)
    with pytest.raises(InvalidRequest, match="generate, not embed"):
        register(db, runner="encoder", digest="d2")
    assert list_models(db)[0].versions == [1]


def test_an_alias_needs_a_version_and_a_file_its_digest(db: Database) -> None:
    register(db)
    with pytest.raises(NotFound):
        set_alias(db, "tiny", "canary", 2, "test")
    with pytest.raises(NotFound):
        read_file(db, "0" * 64)


def test_registering_and_pointing_are_on_record(db: Database, query: Query) -> None:
    register(db)
    register(db)
    register(db, digest="d2")
    for version in (1, 2):
        set_alias(db, "tiny", "canary", version, "mia")
    rows = query("SELECT actor, action, resource, detail FROM audit_log ORDER BY id")
    assert rows == [
        {"actor": "test", "action": "model.registered", "resource": "tiny@1", "detail": {"digest": "d1"}},
        {"actor": "test", "action": "model.registered", "resource": "tiny@2", "detail": {"digest": "d2"}},
        {"actor": "mia", "action": "model.alias_set", "resource": "tiny@canary", "detail": {"version": 1}},
        {
            "actor": "mia",
            "action": "model.alias_set",
            "resource": "tiny@canary",
            "detail": {"version": 2, "from_version": 1},
        },
    ]
    hashes = query("SELECT before_hash, after_hash FROM audit_log ORDER BY id DESC LIMIT 2")
    assert [tuple(one.values()) for one in hashes] == [(hash_of(1), hash_of(2)), (None, hash_of(1))]
    assert list_entries(db, "ten_x") == [], "the registry belongs to no tenant"


def test_names_of_queues_and_tasks() -> None:
    assert queue_name("tiny", 3) == "tiny@3"
    assert shadow_name("generate", "tiny", 3) == "generate:tiny@3"
