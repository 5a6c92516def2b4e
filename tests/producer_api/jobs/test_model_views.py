"""Models as they are listed in each format."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.producer_api.jobs.model_views import anthropic_model, anthropic_models, model_objects, reasoning_abilities
from headrace.store.payloads.reasoning import ReasoningEffort
from headrace.store.registry.models import ModelSummary
from tests.producer_api.jobs.start_time import at

SUMMARY = ModelSummary(
    name="tiny",
    task="generate",
    created_at=at(0.9),
    aliases={"stable": 1, "default": 2, "old": 9},
    versions=[2, 1],
    engines={2: "vllm"},
    bases={1: "base@4"},
    context_windows={1: 512, 2: 1024, 9: 8},
)


def test_a_model_is_listed_by_name_alias_and_version() -> None:
    found = model_objects(SUMMARY)
    versions = {"tiny": 2, "tiny@default": 2, "tiny@stable": 1, "tiny@2": 2, "tiny@1": 1}
    assert {one.id: one.version for one in found} == versions
    assert [one.id for one in found] == [*versions]
    assert found[2].model_dump() == {
        "id": "tiny@stable",
        "object": "model",
        "created": 1_800_000_000,
        "owned_by": "headrace",
        "task": "generate",
        "version": 1,
        "aliases": SUMMARY.aliases,
        "versions": [2, 1],
        "root": "tiny",
        "parent": "base@4",
        "max_model_len": 512,
        "context_length": 512,
        "engine": "native",
    }
    assert (found[0].engine, found[0].parent, found[0].max_model_len) == ("vllm", None, 1024)
    assert [one.id for one in model_objects(replace(SUMMARY, aliases={}))] == ["tiny@2", "tiny@1"]


@pytest.mark.parametrize(
    ("limit", "after", "before", "ids", "has_more"),
    [
        (2, None, None, ["tiny", "tiny@default"], True),
        (5, None, None, ["tiny", "tiny@default", "tiny@stable", "tiny@2", "tiny@1"], False),
        (2, "tiny@default", None, ["tiny@stable", "tiny@2"], True),
        (2, "tiny@stable", None, ["tiny@2", "tiny@1"], False),
        (2, None, "tiny@2", ["tiny@default", "tiny@stable"], True),
        (3, None, "tiny@2", ["tiny", "tiny@default", "tiny@stable"], False),
        (2, "none", None, [], False),
        (2, None, "none", [], False),
        (2, None, "tiny", [], False),
    ],
)
def test_anthropic_s_pages_go_on_after_and_before_an_id(
    limit: int, after: str | None, before: str | None, ids: list[str], has_more: bool
) -> None:
    page = anthropic_models(model_objects(SUMMARY), limit, after, before)
    assert ([one.id for one in page.data], page.has_more) == (ids, has_more)
    assert (page.first_id, page.last_id) == ((ids[0], ids[-1]) if ids else (None, None))


def test_a_model_in_anthropic_s_format() -> None:
    assert anthropic_model(model_objects(SUMMARY)[0]).model_dump() == {
        "type": "model",
        "id": "tiny",
        "display_name": "tiny",
        "created_at": "2027-01-15T08:00:00Z",
        "lifecycle": "active",
    }
    assert reasoning_abilities(None) is None
    support: Any = SimpleNamespace(is_default=True, efforts=(ReasoningEffort.LOW,), levels=(ReasoningEffort.HIGH,))
    abilities = reasoning_abilities(support)
    assert abilities is not None
    assert abilities.model_dump(mode="json") == {"default": True, "efforts": ["low"], "levels": ["high"]}
