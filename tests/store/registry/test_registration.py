"""What a registration stores, shows and puts on record: engines, bases, golden answers, default templates."""

from typing import Any

import pytest

from headrace.store.audit_log import hash_of, list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest
from headrace.store.payloads.conversation import ChatMessage
from headrace.store.payloads.prompt_reference import DefaultTemplate
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry import versions
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import (
    ModelVersion,
    get_version,
    list_adapters,
    list_models,
    read_file,
    resolve,
    set_sampling,
)
from headrace.store.registry.verification import Verification
from headrace.store.registry.verification_report import GoldenAnswer, VerificationReport
from headrace.store.schema.version_states import VersionState
from tests.refusals import Naming
from tests.store.making import AcceptOne, Query
from tests.store.registry.test_models import register

GOLDEN = (GoldenAnswer(prompt="a", tokens=(1, 2)),)
TEMPLATE = DefaultTemplate(
    id="pmpt_1", name="guide", version=3, digest="t1", messages=(ChatMessage(role="system", content="Be brief."),)
)


def ready(db: Database, version: ModelVersion) -> ModelVersion:
    verification = Verification(db, version.model, version.version, worker="w", lease_s=60)
    assert verification.claim().is_ours
    assert verification.accept(VerificationReport(worker="w"))
    return get_version(db, version.model, version.version)


def refused(run: Any) -> tuple[str, str, str | None]:
    with pytest.raises((Conflict, InvalidRequest)) as error:
        run()
    return error.value.message, error.value.code, error.value.param


def test_weights_that_are_verified_are_shared_by_versions_with_another_template(db: Database, tenant: str) -> None:
    first = register(db, runner="torch", digest="w")
    assert first.state is VersionState.REGISTERED
    assert refused(lambda: register(db, runner="torch", digest="w", template=TEMPLATE)) == (
        Naming("tiny@1 has these weights", "`headrace worker --model tiny@1`"),
        "version_not_ready",
        None,
    )
    first = ready(db, first)
    set_sampling(db, "tiny", 1, SamplingDefaults(temperature=0.25), "mia")
    made = register(db, runner="torch", digest="w", template=TEMPLATE, tenant_id=tenant, context_window=64)
    assert (made.version, made.base, made.shares_weights, made.state) == (2, "tiny@1", True, VersionState.READY)
    assert (made.template, made.sampling) == (TEMPLATE, SamplingDefaults(temperature=0.25))
    again = register(db, runner="torch", digest="w", template=TEMPLATE)
    assert again == made
    assert register(db, runner="torch", digest="w", dtype="bfloat16", template=TEMPLATE).base is None
    assert (list_adapters(db, first), list_models(db)[0].bases) == ([made], {}), "no LoRA adapter"
    second = versions.list_versions(db, "tiny")[1]
    assert (second.base, second.shares_weights, second.template) == ("tiny@1", True, TEMPLATE.use)
    (entry, *_) = list_entries(db, tenant)
    after: dict[str, Any] = {"model": "tiny", "runner": "torch", "source": "built in", "digest": "w"}
    after |= {"dtype": "float32", "context_window": 64, "files": made.files, "base": "tiny@1"}
    after["template"] = {"id": "pmpt_1", "name": "guide", "version": 3, "digest": "t1"}
    assert (entry.actor, entry.action, entry.resource, entry.detail) == (
        "test",
        "model.registered",
        "tiny@2",
        {"digest": "w"},
    )
    assert (entry.before_hash, entry.after_hash) == (None, hash_of(after))


def test_an_adapter_is_ready_and_needs_a_base_in_use(db: Database) -> None:
    base = ready(db, register(db, runner="torch", digest="w"))
    tone = register(db, model="tone", runner="torch", digest="a", base=base)
    assert (tone.base, tone.shares_weights, tone.state) == ("tiny@1", False, VersionState.READY)
    register(db, model="tune", runner="torch", digest="b", base=base)
    versions.set_alias(db, "tone", "default", register(db, model="tone", runner="fake", digest="x").version, "test")
    versions.retire(db, "tone", 1, "test")
    assert [one.name for one in list_adapters(db, base)] == ["tone@1", "tune@1"], "a retired one may have jobs"
    assert refused(lambda: versions.retire(db, "tiny", 1, "test"))[0] == Naming("tiny@default")
    register(db, digest="d2", runner="torch")
    versions.set_alias(db, "tiny", "default", 2, "test", is_early=True)
    assert refused(lambda: versions.retire(db, "tiny", 1, "test")) == (
        Naming("base of tune@1"),
        "version_in_use",
        None,
    )
    listed = {one.name: one for one in list_models(db)}
    assert (listed["tone"].bases, listed["tone"].versions, listed["tone"].context_windows) == (
        {1: "tiny@1"},
        [2],
        {1: 2048, 2: 2048},
    )


def test_a_base_is_not_deleted_before_its_retired_adapters(db: Database) -> None:
    base = ready(db, register(db, runner="torch", digest="w"))
    register(db, runner="fake", digest="f")
    register(db, model="tone", runner="torch", digest="a", base=base)
    register(db, model="tone", runner="fake", digest="f")
    for name, version in (("tone", 1), ("tiny", 1)):
        versions.set_alias(db, name, "default", 2, "test")
        versions.retire(db, name, version, "test")
    assert refused(lambda: versions.delete_version(db, "tiny", 1, "test"))[0] == Naming("base of tone@1")
    assert refused(lambda: versions.revive(db, "tone", 1, "test"))[0] == Naming("base tiny@1 is retired")
    assert refused(lambda: register(db, model="tone", runner="torch", digest="b", base=base)) == (
        Naming("base tiny@1 is retired"),
        "version_in_use",
        None,
    )
    (_, first) = versions.list_versions(db, "tiny")
    assert (first.state, first.state_at) == (VersionState.RETIRED, first.retired_at)
    versions.delete_version(db, "tone", 1, "test")
    versions.delete_version(db, "tiny", 1, "test")


def test_files_that_the_registry_has_are_kept(db: Database) -> None:
    first = register(db, files={"a": b"one", "b": b"two"})
    second = register(db, digest="d2", files={"b": b"three"}, kept_files=first.files)
    assert (second.files["a"], second.files["b"] == first.files["b"]) == (first.files["a"], False)
    assert read_file(db, second.files["b"]) == b"three"


def test_golden_answers_are_given_with_the_first_registration(db: Database) -> None:
    version = register(db, runner="torch", golden=GOLDEN)
    verification = Verification(db, "tiny", 1, worker="w", lease_s=60)
    assert verification.claim().golden == GOLDEN
    assert verification.reject("wrong", VerificationReport(worker="w"))
    other = (GoldenAnswer(prompt="b", tokens=(3,)),)
    register(db, runner="torch", golden=other)
    standing = verification.claim()
    assert (standing.state, standing.reason, standing.golden, standing.is_ours) == (
        VersionState.REGISTERED,
        None,
        other,
        True,
    )
    verification.reject("wrong again", VerificationReport(worker="w"))
    register(db, runner="torch")
    assert verification.claim().golden == other, "without new ones the former stay"
    verification.accept(VerificationReport(worker="w"))
    assert register(db, runner="torch", golden=other).state is VersionState.READY, "the same ones"
    assert refused(lambda: register(db, runner="torch", golden=GOLDEN)) == (
        Naming("tiny@1 is verified"),
        "conflict",
        None,
    )
    assert resolve(db, "tiny").created_at == version.created_at


def test_a_version_without_files_on_a_chat_server_has_no_tokenizer(db: Database) -> None:
    chat, vllm = (EngineSpec(kind=kind, url="http://gpu") for kind in (EngineKind.OPENAI, EngineKind.VLLM))
    made = [
        register(db, model=f"m{n}", runner=engine.kind.value, engine=engine, files=files).is_without_tokenizer
        for n, (engine, files) in enumerate([(chat, {}), (chat, {"tokenizer.json": b"{}"}), (vllm, {})])
    ]
    assert made == [True, False, False]


def test_a_deleted_version_takes_what_is_its_own_with_it(db: Database, query: Query) -> None:
    for digest in ("d1", "d2", "d3"):
        register(db, digest=digest)
    for version in (2, 3):
        set_sampling(db, "tiny", version, SamplingDefaults(top_k=version), "mia")
        query(
            "INSERT INTO model_prices (model, version, input, cached_input, output) VALUES ('tiny', :v, 1, 1, 2)",
            v=version,
        )
        versions.retire(db, "tiny", version, "test")
    for version in (3, 2):
        versions.delete_version(db, "tiny", version, "mia")
    assert (
        query("SELECT count(*) AS n FROM model_sampling UNION ALL SELECT count(*) FROM model_prices") == [{"n": 0}] * 2
    )
    assert register(db, digest="d4").version == 4, "the greatest number that was given"
    told = query("SELECT actor, resource, detail FROM audit_log WHERE action = 'model.deleted' ORDER BY id")
    assert told == [
        {"actor": "mia", "resource": f"tiny@{version}", "detail": {"digest": f"d{version}"}} for version in (3, 2)
    ]


def test_sampling_defaults_are_on_record_and_of_one_version(db: Database, query: Query) -> None:
    register(db)
    register(db, digest="d2")
    changed = set_sampling(db, "tiny", 2, SamplingDefaults(temperature=0.5, top_k=3), "mia")
    assert (changed.version, changed.sampling) == (2, SamplingDefaults(temperature=0.5, top_k=3))
    assert set_sampling(db, "tiny", 2, SamplingDefaults(top_k=4), "mia").sampling == SamplingDefaults(top_k=4)
    assert get_version(db, "tiny", 1).sampling == SamplingDefaults()
    told = query("SELECT resource, detail, before_hash, after_hash FROM audit_log WHERE actor = 'mia' ORDER BY id")
    first, second = {"temperature": 0.5, "top_k": 3}, {"top_k": 4}
    assert told == [
        {
            "resource": "tiny@2",
            "detail": {"temperature": "0.5", "top_k": "3"},
            "before_hash": hash_of({}),
            "after_hash": hash_of(first),
        },
        {"resource": "tiny@2", "detail": {"top_k": "4"}, "before_hash": hash_of(first), "after_hash": hash_of(second)},
    ]


def test_refusals_of_versions_and_aliases_say_what_to_do(db: Database, accept_one: AcceptOne) -> None:
    register(db)
    register(db, digest="d2")
    versions.set_alias(db, "tiny", "stable", 1, "test")
    in_use = "version_in_use"
    for run, answer in (
        (
            lambda: versions.set_alias(db, "tiny", "1a", 1, "test"),
            (Naming("'1a'"), "invalid_value", "alias"),
        ),
        (
            lambda: versions.set_alias(db, "tiny", "a" * 65, 1, "test"),
            (Naming(repr("a" * 65)), "invalid_value", "alias"),
        ),
        (
            lambda: versions.remove_alias(db, "tiny", "default", "test"),
            (Naming("tiny@default"), in_use, None),
        ),
        (
            lambda: versions.retire(db, "tiny", 1, "test"),
            (Naming("tiny@default and tiny@stable"), in_use, None),
        ),
        (lambda: versions.delete_version(db, "tiny", 2, "test"), (Naming("tiny@2 is in use"), in_use, None)),
        (
            lambda: register(db, runner="encoder"),
            (Naming("generate, not embed"), "invalid_value", "task"),
        ),
        (
            lambda: register(db, model="a b"),
            (Naming("'a b'"), "invalid_value", "model"),
        ),
    ):
        assert refused(run) == answer
    versions.set_alias(db, "tiny", "a" * 64, 1, "test")
    register(db, model="x" * 128)


def test_changes_of_a_tenants_key_are_in_its_audit_log(db: Database, tenant: str) -> None:
    register(db)
    register(db, digest="d2")
    mia: dict[str, Any] = {"actor": "mia", "tenant_id": tenant}
    versions.set_alias(db, "tiny", "stable", 2, **mia)
    versions.set_alias(db, "tiny", "stable", 1, **mia)
    versions.remove_alias(db, "tiny", "stable", **mia)
    versions.retire(db, "tiny", 2, **mia)
    versions.revive(db, "tiny", 2, **mia)
    told = [(e.action, e.resource, e.detail, e.before_hash, e.after_hash) for e in list_entries(db, tenant, limit=5)]
    hashes = {version: hash_of(version) for version in (1, 2)}
    assert told[::-1] == [
        ("model.alias_set", "tiny@stable", {"version": 2}, None, hashes[2]),
        ("model.alias_set", "tiny@stable", {"version": 1, "from_version": 2}, hashes[2], hashes[1]),
        ("model.alias_removed", "tiny@stable", {"from_version": 1}, hashes[1], None),
        ("model.retired", "tiny@2", {}, None, None),
        ("model.revived", "tiny@2", {}, None, None),
    ]


def test_weights_are_shared_with_a_version_in_use_that_has_them(db: Database) -> None:
    ready(db, register(db, runner="torch", digest="w"))
    register(db, runner="torch", digest="v")
    versions.set_alias(db, "tiny", "default", 2, "test", is_early=True)
    versions.retire(db, "tiny", 1, "test")
    made = register(db, runner="torch", digest="w", template=TEMPLATE)
    assert (made.version, made.base, made.state) == (3, None, VersionState.REGISTERED), "the first one is retired"
    ready(db, made)
    other = TEMPLATE.model_copy(update={"digest": "t2"})
    assert register(db, runner="torch", digest="w", template=other).base == "tiny@3"
    assert register(db, runner="torch", digest="w", template=TEMPLATE).version == 3
    assert register(db, model="small", runner="torch", digest="w", template=other).base is None, "of its own model"
