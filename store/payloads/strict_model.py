"""What every body that a caller sends is made of, and what every stored body is made of besides: no unknown fields,
nothing that changes, texts of a bounded length."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema

MAX_TEXT_CHARS = 1_000_000
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARS)]

_MANY = frozenset({"list", "tuple", "set", "frozenset", "dict"})
# Of a schema: what is no schema, and may look like one.
_NO_SCHEMAS = frozenset({"metadata", "default", "config", "serialization"})


def _fail_fast(schema: Any) -> None:
    """Let every list and mapping in pydantic's schema fail at its first wrong item."""
    if isinstance(schema, list | tuple):
        for part in schema:
            _fail_fast(part)
    elif isinstance(schema, dict):
        if isinstance(schema.get("type"), str) and schema["type"] in _MANY:
            schema["fail_fast"] = True
        for name, part in schema.items():
            if name == "fields" and isinstance(part, dict):
                _fail_fast(list(part.values()))  # its keys are names of the model's own
            elif name not in _NO_SCHEMAS:
                _fail_fast(part)


class Body(BaseModel):
    """A body that is refused at the first wrong item of each list: a long list makes one complaint and not many."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's own schema, changed in this alone."""
        schema = handler(source)
        _fail_fast(schema)
        return schema


class Strict(Body):
    """A frozen body that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
