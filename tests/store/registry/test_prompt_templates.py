"""Prompt templates: each has its own versions, each tenant its own prompts."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.rollouts.changes import NewRollout, change, start_of_pipeline
from headrace.features.rollouts.rollouts import RolloutKind, Step
from headrace.features.rollouts.transitions import RolloutAction, Transition
from headrace.store.audit_log import hash_of, list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, HeadraceError, InvalidRequest, NotFound
from headrace.store.registry import pipeline_aliases, prompt_templates
from headrace.store.registry.prompt_templates import (
    Canary,
    Kind,
    add_version,
    canaries,
    choose,
    create,
    delete,
    get,
    list_prompts,
    list_versions,
    remove_alias,
    set_alias,
)
from tests.refusals import Naming


def test_versions_and_pages_are_a_prompts_and_a_tenants_own(db: Database, tenant: str, other_tenant: str) -> None:
    first, second = (create(db, tenant, name=name, template={"instructions": name}, actor="t") for name in "ab")
    foreign = create(db, other_tenant, name="c", template={"instructions": "c"}, actor="t")
    newest = add_version(db, tenant, first.id, template={"instructions": "a2"}, actor="t")
    assert (newest.id, newest.name, newest.version) == (first.id, "a", 2)
    assert list_versions(db, tenant, first.id) == [first, newest]
    assert list_versions(db, tenant, second.id) == [second]
    assert (get(db, tenant, first.id), get(db, tenant, first.id, 1)) == (newest, first)
    with pytest.raises(NotFound, match="alias 2"):
        get(db, tenant, second.id, 2)
    assert list_prompts(db, tenant, limit=9) == [second, newest]
    assert list_prompts(db, tenant, limit=1) == [second]
    assert list_prompts(db, tenant, limit=9, after=second.id) == [newest]
    assert list_prompts(db, other_tenant, limit=9) == [foreign]
    namesake = create(db, other_tenant, name="a", template={"instructions": "theirs"}, actor="t")
    assert (get(db, tenant, "a"), get(db, other_tenant, "a")) == (newest, namesake)
    for touch in (
        lambda: get(db, other_tenant, first.id),
        lambda: list_versions(db, other_tenant, first.id),
        lambda: add_version(db, other_tenant, first.id, template={}, actor="eve"),
    ):
        with pytest.raises(NotFound):
            touch()


def answer(run: Any) -> tuple[str, str, str | None]:
    with pytest.raises(HeadraceError) as error:
        run()
    return error.value.message, error.value.code, error.value.param


def test_aliases_and_canaries_name_versions_of_their_prompt(db: Database, tenant: str) -> None:
    first = create(db, tenant, name="a", template={"n": 1}, actor="mia")
    second = add_version(db, tenant, "a", template={"n": 2}, actor="mia")
    other = create(db, tenant, name="b", template={"n": 3}, actor="mia", kind=Kind.PIPELINE)
    assert (first.id[:5], other.id[:5], first.reference, second.version) == ("pmpt_", "pipe_", "a@1", 2)
    assert create(db, tenant, name="", template={}, actor="mia").reference.startswith("pmpt_")
    assert answer(lambda: create(db, tenant, name="b", template={}, actor="mia")) == (
        Naming("pipeline b already"),
        "conflict",
        "name",
    )
    named = set_alias(db, tenant, "a", "live", 1, actor="mia", canary=Canary("live", 2, 25))
    assert (named.version, named.aliases) == (1, ("live",))
    assert canaries(db, tenant, "a", Kind.PROMPT) == [Canary("live", 2, 25)]
    set_alias(db, tenant, first.id, "calm", 2, actor="mia")
    assert (get(db, tenant, "a", "live").version, get(db, tenant, "a", "calm").version) == (1, 2)
    assert (get(db, tenant, "a", "latest").version, get(db, tenant, "a", "1").version) == (2, 1)
    set_alias(db, tenant, "a", "latest", 1, actor="mia")
    assert get(db, tenant, "a", "latest").version == 1, "unless there is an alias of that name"
    set_alias(db, tenant, "a", "default", 1, actor="mia")
    assert (get(db, tenant, "a").version, get(db, tenant, "a").aliases) == (1, ("default", "latest", "live"))
    set_alias(db, tenant, "a", "live", 2, actor="mia")
    assert canaries(db, tenant, "a", Kind.PROMPT) == [], "setting an alias without a canary ends one"
    with pytest.raises(NotFound, match="no prompt b"):
        get(db, tenant, "b")
    assert answer(lambda: get(db, tenant, "a", "9" * 10)) == (
        Naming("prompt a ", "9999999999"),
        "not_found",
        "prompt",
    )
    remove_alias(db, tenant, "a", "calm", actor="mia")
    assert answer(lambda: remove_alias(db, tenant, "a", "calm", actor="mia"))[0] == Naming("prompt a ", "calm")
    assert [one.version for one in list_prompts(db, tenant, limit=9, kind=Kind.PIPELINE)] == [1]
    assert delete(db, tenant, "a", actor="mia") == first.id
    assert list_prompts(db, tenant, limit=9, kind=Kind.PIPELINE) == [other]
    with pytest.raises(NotFound):
        list_versions(db, tenant, first.id)
    told = [(e.action, e.detail) for e in reversed(list_entries(db, tenant)) if e.resource == first.id]
    assert told == [
        ("prompt.created", {"version": 1}),
        ("prompt.version_added", {"version": 2}),
        ("prompt.alias_set", {"alias": "live", "version": 1, "canary_version": 2, "canary_percent": 25}),
        *(
            ("prompt.alias_set", {"alias": alias, "version": version})
            for alias, version in (("calm", 2), ("latest", 1), ("default", 1), ("live", 2))
        ),
        ("prompt.alias_removed", {"alias": "calm"}),
        ("prompt.deleted", {}),
    ]


def test_prompts_versions_and_aliases_have_a_most(
    db: Database, tenant: str, other_tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(db, other_tenant, name="x", template={}, actor="mia")
    create(db, tenant, name="a", template={}, actor="mia")
    monkeypatch.setattr(prompt_templates, "MAX_ALIASES", 1)
    set_alias(db, tenant, "a", "live", 1, actor="mia")
    set_alias(db, tenant, "a", "live", 1, actor="mia")
    assert answer(lambda: set_alias(db, tenant, "a", "more", 1, actor="mia"))[0] == Naming("1 aliases")
    monkeypatch.setattr(prompt_templates, "MAX_PROMPTS", 2)
    create(db, tenant, name="b", template={}, actor="mia")
    assert answer(lambda: create(db, tenant, name="c", template={}, actor="mia"))[0] == Naming("2 prompts")
    monkeypatch.setattr(prompt_templates, "MAX_VERSIONS", 3)
    assert add_version(db, tenant, "a", template={}, actor="mia").version == 2
    said = answer(lambda: add_version(db, tenant, "a", template={}, actor="mia"))[0]
    assert said == Naming("versions", "3 with", "268435456")
    monkeypatch.setattr(prompt_templates, "MAX_VERSIONS", 9)
    monkeypatch.setattr(prompt_templates, "MAX_BYTES", 1)
    assert answer(lambda: add_version(db, tenant, "a", template={}, actor="mia"))[1] == "conflict"


def test_a_rollout_of_a_pipeline_begins_at_a_version_that_its_alias_names(
    db: Database, tenant: str, other_tenant: str
) -> None:
    pipe = create(db, tenant, name="p", template={}, actor="mia", kind=Kind.PIPELINE)
    for _ in range(2):
        add_version(db, tenant, "p", template={}, actor="mia", kind=Kind.PIPELINE)
    set_alias(db, tenant, "p", "live", 1, actor="mia", kind=Kind.PIPELINE)
    set_alias(db, tenant, "p", "try", 1, actor="mia", kind=Kind.PIPELINE, canary=Canary("try", 2, 5))
    prompt = create(db, tenant, name="q", template={}, actor="mia")

    def stable(owner: str, key: str, alias: str, candidate: int) -> int:
        with db.begin(tenant_id=owner) as connection:
            return pipeline_aliases.stable_version(connection, owner, key, alias, candidate)

    assert stable(tenant, pipe.id, "live", 3) == 1
    for given, error, said, param in (
        ((other_tenant, pipe.id, "live", 2), NotFound, f"no pipeline {pipe.id}", "pipeline"),
        ((tenant, prompt.id, "live", 2), NotFound, f"no pipeline {prompt.id}", "pipeline"),
        ((tenant, pipe.id, "none", 2), InvalidRequest, "alias none", "alias"),
        ((tenant, pipe.id, "try", 2), Conflict, "alias try has a canary", None),
        ((tenant, pipe.id, "live", 1), Conflict, "alias live names version 1", None),
        ((tenant, pipe.id, "live", 4), NotFound, "version 4", "version"),
    ):
        with pytest.raises(error) as refused:
            stable(*given)
        assert (refused.value.message, refused.value.param) == (Naming(said), param)
    with db.begin(tenant_id=tenant) as connection:
        pipeline_aliases.point(connection, pipe.id, "try", 3)
    named = {alias: get(db, tenant, "p", alias, Kind.PIPELINE).version for alias in ("live", "try")}
    assert (named, canaries(db, tenant, "p", Kind.PIPELINE)) == ({"live": 1, "try": 3}, [])


def test_the_hash_of_a_template_is_on_record(db: Database, tenant: str) -> None:
    made = create(db, tenant, name="a", template={"n": 1}, actor="mia")
    add_version(db, tenant, "a", template={"n": 2}, actor="kai")
    assert [(e.actor, e.action, e.resource, e.after_hash) for e in list_entries(db, tenant, limit=2)] == [
        ("kai", "prompt.version_added", made.id, hash_of({"n": 2})),
        ("mia", "prompt.created", made.id, hash_of({"n": 1})),
    ]


def test_what_a_rollout_divides_is_neither_moved_nor_removed(db: Database, tenant: str) -> None:
    pipe = create(db, tenant, name="p", template={}, actor="mia", kind=Kind.PIPELINE)
    add_version(db, tenant, "p", template={}, actor="mia", kind=Kind.PIPELINE)
    for alias in ("live", "calm"):
        set_alias(db, tenant, "p", alias, 1, actor="mia", kind=Kind.PIPELINE)
    rollout = start_of_pipeline(db, NewRollout(pipe.id, 2, [Step(5, hold_s=1)], alias="live"), "mia", tenant)
    assert (rollout.kind, rollout.stable_version, rollout.candidate_version) == (RolloutKind.PIPELINE, 1, 2)
    named: Any = {"actor": "mia", "kind": Kind.PIPELINE}
    changes = (
        lambda: set_alias(db, tenant, "p", "live", 2, **named),
        lambda: remove_alias(db, tenant, "p", "live", **named),
        lambda: delete(db, tenant, "p", **named),
    )
    for number, run in enumerate((*changes, *changes)):
        if number == len(changes):
            change(db, rollout.id, Transition(RolloutAction.PAUSE, "look"), "mia", tenant_id=tenant)
        assert answer(run) == (
            Naming(f"{rollout.id} is active"),
            "rollout_active",
            None,
        )
    set_alias(db, tenant, "p", "calm", 2, **named)
    remove_alias(db, tenant, "p", "calm", **named)
    ended = change(db, rollout.id, Transition(RolloutAction.ROLL_BACK, "worse"), "mia", tenant_id=tenant)
    assert (ended.percent, get(db, tenant, "p", "live", Kind.PIPELINE).version) == (0.0, 1)
    again = NewRollout(pipe.id, 2, [Step(5, hold_s=1)], alias="live")
    assert answer(lambda: start_of_pipeline(db, again, "mia", tenant)) == (
        Naming(f"{pipe.id}@2", rollout.id, "`force`"),
        "version_rolled_back",
        None,
    )
    forced = start_of_pipeline(db, replace(again, force=True), "mia", tenant)
    change(db, forced.id, Transition(RolloutAction.PROMOTE, "good"), "mia", tenant_id=tenant)
    assert get(db, tenant, "p", "live", Kind.PIPELINE).version == 2


def test_a_canary_gets_the_keys_below_its_percentage(db: Database, tenant: str) -> None:
    pipe = create(db, tenant, name="p", template={"n": 1}, actor="mia", kind=Kind.PIPELINE)
    add_version(db, tenant, "p", template={"n": 2}, actor="mia", kind=Kind.PIPELINE)
    for alias in ("default", "live"):
        set_alias(db, tenant, "p", alias, 1, actor="mia", kind=Kind.PIPELINE, canary=Canary(alias, 2, 25))
    drawn: list[str] = []

    def chosen(key: str, point: float) -> int:
        return choose(db, tenant, key, Kind.PIPELINE, lambda text: drawn.append(text) or point).version

    assert [chosen("p", point) for point in (24.9, 25.0)] == [2, 1]
    assert [chosen("p@live", point) for point in (24.9, 25.0)] == [2, 1]
    assert drawn == [f"{pipe.id} default 2"] * 2 + [f"{pipe.id} live 2"] * 2
    assert (chosen("p@1", 0.0), chosen("p@latest", 99.0)) == (1, 2)
    assert answer(lambda: get(db, tenant, "p@1", 2, Kind.PIPELINE)) == (
        Naming("`version`"),
        "invalid_value",
        "pipeline.version",
    )
