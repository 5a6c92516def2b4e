"""The tools that every tenant has: what a model is told of them. The server computes them itself."""

from collections.abc import Mapping
from typing import Any, Final

CALCULATOR: Final = "calculator"

FILE_SEARCH: Final = "file_search"
"""A call of it is a step that searches the request's vector stores (``features.flows.running.tool_steps``)."""

CALCULATOR_PARAMETERS: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "expression": {"type": "string", "maxLength": 200, "description": "for example 2 * (3 + 4) / 7"},
    },
    "required": ["expression"],
    "additionalProperties": False,
}

MAX_QUERY_CHARS: Final = 1000

FILE_SEARCH_PARAMETERS: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARS, "description": "what to search for"},
    },
    "required": ["query"],
    "additionalProperties": False,
}

BUILT_IN: Final[Mapping[str, Mapping[str, Any]]] = {
    CALCULATOR: {
        "description": "Computes an arithmetic expression with numbers, brackets and + - * / // % **.",
        "parameters": CALCULATOR_PARAMETERS,
    },
    FILE_SEARCH: {
        "description": "Searches the files of the user. Returns numbered passages with the names of their files.",
        "parameters": FILE_SEARCH_PARAMETERS,
    },
}
"""What a model is told of each, by name; the names are taken."""
