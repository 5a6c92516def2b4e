"""Base models of request bodies and stored bodies: no unknown fields, immutable, texts of limited length."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema

MAX_TEXT_CHARS = 1_000_000
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARS)]

_MANY = frozenset({"list", "tuple", "set", "frozenset", "dict"})
# Fields of a schema that are no schemas but may look like one.
_NO_SCHEMAS = frozenset({"metadata", "default", "config", "serialization"})


def _fail_fast(schema: Any) -> None:
    """Make all lists and mappings in pydantic's schema fail at their first invalid item."""
    if isinstance(schema, list | tuple):
        for part in schema:
            _fail_fast(part)
    elif isinstance(schema, dict):
        if isinstance(schema.get("type"), str) and schema["type"] in _MANY:
            schema["fail_fast"] = True
        for name, part in schema.items():
            if name == "fields" and isinstance(part, dict):
                _fail_fast(list(part.values()))  # its keys are field names, not keywords
            elif name not in _NO_SCHEMAS:
                _fail_fast(part)


class Body(BaseModel):
    """A body with one validation error for each list: its first invalid item, not all of them."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's schema with fail-fast lists."""
        schema = handler(source)
        _fail_fast(schema)
        return schema


class Strict(Body):
    """An immutable body that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
