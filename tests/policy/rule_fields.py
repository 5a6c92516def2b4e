"""The fields of single rules, for tests of documents and verdicts."""

from typing import Any

EMAIL: dict[str, Any] = {"action": "flag", "kinds": ["email"]}


def deny(**lists: Any) -> dict[str, Any]:
    return {"action": "flag", "deny": lists}
