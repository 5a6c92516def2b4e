"""The arguments that a model wrote for a call of a tool, read and checked against the schema of the tool. No I/O."""

import json
from collections.abc import Mapping
from typing import Any

from headrace.policy.schemas import check_schema, first_problem
from headrace.store.payloads.tool_approval import MOST_REASON_CHARS


def arguments_of(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a model wrote. Raises ValueError with the first fault, for the model."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise ValueError("the arguments are not valid JSON") from None
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are not a JSON object")
    problem = first_problem(check_schema(dict(schema), "parameters"), arguments)
    if problem is not None:
        place, reason = problem
        raise ValueError(f"the arguments do not match the schema{f' at {place}' if place else ''}: {reason}")
    return arguments


def fault_of(text: str, schema: Mapping[str, Any]) -> str | None:
    """Return why a call with these arguments cannot be made, as ``arguments_of`` says it; None if they fit.

    The verdict holds for good: how deep a JSON may be depends on the stack of the thread that reads it.
    """
    try:
        arguments_of(text, schema)
    except ValueError as error:
        return str(error)[:MOST_REASON_CHARS]
    return None
