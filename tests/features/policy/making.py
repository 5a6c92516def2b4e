"""Policies that tests of single steps are made of."""

from types import SimpleNamespace
from typing import Any

from headrace.features.policy.input_policy import ActivePolicy
from headrace.policy.documents import PolicyDocument
from headrace.policy.policies import Policy


def policy(*rules: dict[str, Any]) -> Policy:
    return Policy(PolicyDocument.model_validate({"version": 1, "rules": [*rules]}))


REDACT = policy({"id": "mail", "kinds": ["email"], "action": "redact"})
MAIL, OTHER = "ann@example.com", "bob@example.com"


def active(rules: Policy, **parts: Any) -> ActivePolicy:
    stored: Any = SimpleNamespace(model="tiny", version=7, document=rules.document.model_dump(mode="json"))
    made: Any = SimpleNamespace(settings=SimpleNamespace(names_model=""), **parts)
    return ActivePolicy(stored, made)
