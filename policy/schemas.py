"""JSON schemas of tenants: checked when a policy or a prompt template is stored.

They are followed in linear time and without network access.
"""

import json
from typing import Any

import jsonschema_rs

MAX_SCHEMA_CHARS = 65_536

Validator = Any  # the library's classes differ by draft


def check_schema(schema: dict[str, Any], name: str = "json_schema") -> Validator:
    """Return a validator for the schema; ``name``: of its field. Raises ValueError for one that is not valid here."""
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARS:
        raise ValueError(f"`{name}` is longer than {MAX_SCHEMA_CHARS} characters")
    try:
        return jsonschema_rs.validator_for(
            schema, offline=True, pattern_options=jsonschema_rs.RegexOptions(), mask="the value"
        )
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise ValueError(f"`{name}` is no schema that can be followed: {str(error).splitlines()[0]}") from None


def first_problem(validator: Validator, value: Any) -> tuple[str, str] | None:
    """Return the place of the first thing that the schema does not allow, and why, without the value; None if none."""
    error = next(iter(validator.iter_errors(value)), None)
    if error is None:
        return None
    return ".".join(map(str, error.instance_path)), error.message


def is_valid(validator: Validator, text: str) -> bool:
    """Return True if a text is JSON that the schema allows."""
    try:
        return bool(validator.is_valid(json.loads(text)))
    except (ValueError, RecursionError):
        return False


def is_json(text: str) -> bool:
    """Return True if a text is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
