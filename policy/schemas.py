"""JSON schemas of tenants: checked when a policy is stored, in linear time and without network access."""

import json
from typing import Any

import jsonschema_rs

MAX_SCHEMA_CHARS = 65_536

Validator = Any  # the library's classes differ by draft


def check_schema(schema: dict[str, Any]) -> Validator:
    """Return a validator for the schema. Raises ValueError for a schema that is not valid here."""
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARS:
        raise ValueError(f"`json_schema` is longer than {MAX_SCHEMA_CHARS} characters")
    try:
        return jsonschema_rs.validator_for(schema, offline=True, pattern_options=jsonschema_rs.RegexOptions())
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise ValueError(f"`json_schema` is no schema that can be followed: {str(error).splitlines()[0]}") from None


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
