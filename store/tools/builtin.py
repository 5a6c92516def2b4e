"""The tools that every tenant has: what a model is told of them. The worker computes them itself."""

from collections.abc import Mapping
from typing import Any, Final

CALCULATOR: Final = "calculator"

CALCULATOR_PARAMETERS: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "expression": {"type": "string", "maxLength": 200, "description": "for example 2 * (3 + 4) / 7"},
    },
    "required": ["expression"],
    "additionalProperties": False,
}

BUILT_IN: Final[Mapping[str, Mapping[str, Any]]] = {
    CALCULATOR: {
        "description": "Computes an arithmetic expression with numbers, brackets and + - * / // % **.",
        "parameters": CALCULATOR_PARAMETERS,
    }
}
"""What a model is told of each, by name; the names are taken."""
