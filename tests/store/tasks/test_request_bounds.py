"""Bounds inside the requests of tasks: filters of recommendations, empty lists, names."""

from typing import Any

import pytest

from tests.cases import of
from tests.store.tasks.making import AT_LEAST, AT_MOST, CHAT, read, refused

RANGE = {"attribute": "a", "minimum": 1}
ONE_OF = {"attribute": "a", "one_of": [1]}


def where(condition: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"filter": {"where": [condition | changes]}}


@pytest.mark.uses("recommend")
@pytest.mark.parametrize(
    ("more", "place", "said"),
    [
        ({"filter": {"include_ids": ["a"] * 10_001}}, "filter.include_ids", f"{AT_MOST} 10000"),
        (where(RANGE, attribute=""), "filter.where.0.attribute", AT_LEAST),
        (where(RANGE, attribute="x" * 101), "filter.where.0.attribute", f"{AT_MOST} 100"),
        (where(ONE_OF, one_of=[]), "filter.where.0.one_of", AT_LEAST),
        (where(ONE_OF, one_of=[1] * 1001), "filter.where.0.one_of", f"{AT_MOST} 1000"),
    ],
)
def test_a_filter_that_no_model_applies_is_refused(more: dict[str, Any], place: str, said: str) -> None:
    ((found, message), *_) = refused("recommend", None, **more)
    assert (found, said in message) == (place, True), message


@pytest.mark.uses("recommend")
@pytest.mark.parametrize(
    "more",
    [
        where(RANGE, attribute="x" * 100),
        where(ONE_OF, one_of=[1] * 1000),
        {"filter": dict.fromkeys(("include_ids", "exclude_ids"), ["x" * 200] * 10_000)},
    ],
)
def test_the_largest_filter_is_accepted(more: dict[str, Any]) -> None:
    assert read("recommend", None, **more).task == "recommend"


@pytest.mark.parametrize(
    ("task", "source", "place", "said"),
    [
        *of(
            "recommend",
            ("recommend", {"features": dict.fromkeys(map(str, range(1001)), 1)}, "features", f"{AT_MOST} 1000"),
        ),
        ("embed", {"texts": ["a", ""]}, "texts.1", AT_LEAST),
        ("rerank", {"query": "", "documents": ["b"]}, "query", AT_LEAST),
        ("generate", {"messages": []}, "messages", AT_LEAST),
        ("generate", CHAT | {"tools": []}, "tools", AT_LEAST),
        ("generate", {"token_ids": []}, "token_ids", AT_LEAST),
        ("generate", {"prompts": []}, "prompts", AT_LEAST),
        *of("transcribe", ("transcribe", {"file_id": ""}, "file_id", AT_LEAST)),
        ("call_tool", {"tool": "no tool"}, "tool", "should match pattern"),
    ],
)
def test_an_input_that_is_empty_or_too_large_is_refused(
    task: str, source: dict[str, Any], place: str, said: str
) -> None:
    ((found, message), *_) = refused(task, source)
    assert (found, said in message) == (f"input.{place}", True), message
