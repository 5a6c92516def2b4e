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
        (deny(phrases=["x" * 256]), deny(phrases=["x" * 257]), "256 characters"),
        (deny(phrases=["x"]), deny(phrases=[""]), "string_too_short"),
        (deny(phrases=["x"] * 100_000), deny(phrases=["x"] * 100_001), "100000 items"),
        (deny(patterns=["x" * 1000]), deny(patterns=["x" * 1001]), "1000 characters"),
        (deny(patterns=["x"]), deny(patterns=[""]), "string_too_short"),
        (deny(patterns=["x"]), deny(patterns=["x"] * 1001), "1000 items"),
        (
            deny(patterns=["a{512}b{512}"]),
            deny(patterns=["a", "a{512}b{513}"]),
            "not 1025",
        ),
        (deny(patterns=[r"\bx"]), deny(patterns=[r"\b"]), "characters, not 0"),
        (EMAIL | {"kinds": ["email"] * 32}, EMAIL | {"kinds": ["email"] * 33}, "32 items"),
        (EMAIL | {"id": "a" * 64}, EMAIL | {"id": "a" * 65}, "string_pattern_mismatch"),
        (EMAIL | {"id": "0a_.-"}, EMAIL | {"id": ".a"}, "string_pattern_mismatch"),
        ({"action": "block", "max_chars": 1}, {"action": "block", "max_chars": 0}, "greater_than_equal"),
        (
            {"action": "block", "max_chars": 10**7},
            {"action": "block", "max_chars": 10**7 + 1},
            "less_than_equal",
        ),
        (
            {"action": "flag", "stage": "input", "languages": ["en"] * 64},
            {"action": "flag", "stage": "input", "languages": ["en"] * 65},
            "64 items",
        ),
        (
            {"action": "flag", "stage": "input", "languages": ["en"]},
            {"action": "flag", "stage": "input", "languages": ["eng"]},
            "string_pattern_mismatch",
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
            "`restore`",
        ),
        (
            {"action": "flag", "stage": "input", "languages": ["en"]},
            {"action": "allow", "stage": "input", "languages": ["en"]},
            "`action`",
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
    with pytest.raises(ValidationError, match="256 items"):
        PolicyDocument.model_validate({"rules": rules})
    with pytest.raises(ValidationError, match="literal_error"):
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
    named = ("rule b:", f"`patterns[{fitting - 1}]`", f" {size} ", f" {size * (fitting + 1)} ", " 50000 ")
    assert [one for one in named if one not in str(refused.value)] == []
