"""The bounds of a policy document."""

from typing import Any

import pytest
from pydantic import ValidationError

from headrace.policy.deny import check_size
from headrace.policy.documents import Action, PolicyDocument, Stage
from headrace.policy.text.patterns import BadPattern, compiled
from tests.policy.rule_fields import EMAIL, deny


@pytest.mark.parametrize(
    ("accepted", "refused", "said"),
    [
        (deny(phrases=["x" * 256]), deny(phrases=["x" * 257]), "at most 256 characters"),
        (deny(phrases=["x"]), deny(phrases=[""]), "at least 1 character"),
        (deny(phrases=["x"] * 100_000), deny(phrases=["x"] * 100_001), "at most 100000 items"),
        (deny(patterns=["x" * 1000]), deny(patterns=["x" * 1001]), "at most 1000 characters"),
        (deny(patterns=["x"]), deny(patterns=[""]), "at least 1 character"),
        (deny(patterns=["x"]), deny(patterns=["x"] * 1001), "at most 1000 items"),
        (
            deny(patterns=["a{512}b{512}"]),
            deny(patterns=["a", "a{512}b{513}"]),
            "`patterns[1]` must match 1 to 1024 characters, not 1025",
        ),
        (deny(patterns=[r"\bx"]), deny(patterns=[r"\b"]), "`patterns[0]` must match 1 to 1024 characters, not 0"),
        (EMAIL | {"kinds": ["email"] * 32}, EMAIL | {"kinds": ["email"] * 33}, "at most 32 items"),
        (EMAIL | {"id": "a" * 64}, EMAIL | {"id": "a" * 65}, "should match pattern"),
        (EMAIL | {"id": "0a_.-"}, EMAIL | {"id": ".a"}, "should match pattern"),
        ({"action": "block", "max_chars": 1}, {"action": "block", "max_chars": 0}, "greater than or equal to 1"),
        (
            {"action": "block", "max_chars": 10**7},
            {"action": "block", "max_chars": 10**7 + 1},
            "less than or equal to 10000000",
        ),
        (
            {"action": "flag", "categories": {"hate": 0}},
            {"action": "flag", "categories": {"hate": -0.1}},
            "greater than or equal to 0",
        ),
        (
            {"action": "flag", "categories": {"hate": 1}},
            {"action": "flag", "categories": {"hate": 1.1}},
            "less than or equal to 1",
        ),
        (
            {"action": "flag", "stage": "input", "languages": ["en"] * 64},
            {"action": "flag", "stage": "input", "languages": ["en"] * 65},
            "at most 64 items",
        ),
        (
            {"action": "flag", "stage": "input", "languages": ["en"]},
            {"action": "flag", "stage": "input", "languages": ["eng"]},
            "should match pattern",
        ),
        (
            {"action": "block", "stage": "input", "languages": ["en"]},
            {"action": "block", "stage": "output", "languages": ["en"]},
            "`stage` input",
        ),
        (
            {"action": "flag", "stage": "input", "kinds": ["person"]},
            {"action": "flag", "stage": "output", "kinds": ["person"]},
            "`stage` input",
        ),
        (
            {"action": "flag", "stage": "output", "json_schema": {}},
            {"action": "flag", "stage": "input", "json_schema": {}},
            "`stage` output",
        ),
        (
            EMAIL | {"action": "redact", "restore": True},
            EMAIL | {"action": "mask", "restore": True},
            "redacted on its way in",
        ),
        (
            {"action": "flag", "categories": {"hate": 0.5}},
            {"action": "allow", "categories": {"hate": 0.5}},
            "`action` is block or flag",
        ),
    ],
)
def test_a_document_has_bounds(accepted: dict[str, Any], refused: dict[str, Any], said: str) -> None:
    PolicyDocument.model_validate({"rules": [{"id": "x", **accepted}]})
    with pytest.raises(ValidationError) as refusal:
        PolicyDocument.model_validate({"rules": [{"id": "x", **refused}]})
    assert said in str(refusal.value)


def test_a_document_has_at_most_256_rules_of_one_version() -> None:
    rules = [{"id": f"r{number}", **EMAIL} for number in range(257)]
    document = PolicyDocument.model_validate({"rules": rules[:256]})
    assert (document.version, document.rules[0].stage, document.rules[0].restore) == (1, Stage.BOTH, False)
    with pytest.raises(ValidationError, match="at most 256 items"):
        PolicyDocument.model_validate({"rules": rules})
    with pytest.raises(ValidationError, match="Input should be 1"):
        PolicyDocument.model_validate({"version": 2, "rules": rules[:1]})
    with pytest.raises(ValidationError, match="frozen"):
        document.rules[0].action = Action.BLOCK  # type: ignore[misc]  # the model is frozen, which is tested


def test_the_patterns_of_a_policy_have_a_size_together() -> None:
    pattern = "foo.{0,64}bar"
    size = compiled(f"(?i:{pattern})").programsize
    fitting = 50_000 // size
    rules = [{"id": "a", **deny(patterns=[pattern])}, {"id": "b", **deny(patterns=[pattern] * fitting)}]
    check_size(PolicyDocument.model_validate({"rules": rules[1:]}))
    with pytest.raises(BadPattern) as refused:
        check_size(PolicyDocument.model_validate({"rules": rules}))
    assert str(refused.value) == (
        f"rule b: up to `patterns[{fitting - 1}]`, of {size} instructions, the policy's patterns have "
        f"{size * (fitting + 1)} instructions, and 50000 are possible: bring the counts in {{m,n}} down, or deny words "
        "as `phrases`"
    )
