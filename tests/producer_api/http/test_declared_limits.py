"""The limits that the OpenAPI document declares, such as the longest text of a field, are those in ``limits.txt``.

Clients rely on them, so none changes by accident. ``python -m tests.producer_api.http.test_declared_limits`` writes the
file anew after a change that is meant. A new field need not be in it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.producer_api.http.test_reference import document, fields, operations

LIMITS = Path(__file__).with_name("limits.txt")
WORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems")


def declared() -> Iterator[str]:
    for model, field, about in fields():
        yield from _limits(f"{model}.{field}", about)
    for name, operation in operations():
        for parameter in operation.get("parameters", ()):
            yield from _limits(f"{name} {parameter['name']}", parameter["schema"])


def _limits(name: str, about: Any) -> Iterator[str]:
    if isinstance(about, list):
        for one in about:
            yield from _limits(name, one)
    elif isinstance(about, dict):
        yield from (f"{name} {word} {about[word]}" for word in WORDS if word in about)
        for part in ("anyOf", "oneOf", "allOf", "items", "prefixItems", "additionalProperties", "propertyNames"):
            yield from _limits(f"{name}[]" if part == "items" else name, about.get(part))


def test_no_limit_changes_by_accident() -> None:
    assert document()["paths"]
    gone = sorted(set(LIMITS.read_text().splitlines()) - set(declared()))
    assert gone == [], f"if the change is meant: python -m {__name__}"


if __name__ == "__main__":
    LIMITS.write_text("".join(f"{line}\n" for line in sorted(set(declared()))))
