"""Variables of a request for the model's chat template (``chat_template_kwargs``), with bounds.

A template may repeat a text as often as a number says, so numbers are small. The names that the template gets from us
are not free: a caller could put another conversation in the place of the one that was checked.
"""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints

MAX_VARIABLES = 16
MAX_CHARS = 4096
_MOST = 1_000_000
_MAX_DEPTH = 8

SET_BY_US = frozenset(
    [
        *("messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"),
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        *("chat_template", "continue_final_message", "tokenize", "namespace", "range", "dict", "loop", "self"),
    ]
)
"""Names that templates get from here or from jinja2, and options of the function that renders them in transformers."""


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    if len(given) > MAX_VARIABLES:
        raise ValueError(f"{len(given)} variables: at most {MAX_VARIABLES} are accepted")
    for name in given:
        if name in SET_BY_US:
            raise ValueError(f"`{name}` is set by the server: leave it out")
    _check_values(given, _MAX_DEPTH)
    if len(json.dumps(given)) > MAX_CHARS:
        raise ValueError(f"more than {MAX_CHARS} characters as JSON")
    return given


def _check_values(value: object, depth: int) -> None:
    if depth == 0:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    match value:
        case dict():
            for part in value.values():
                _check_values(part, depth - 1)
        case list():
            for part in value:
                _check_values(part, depth - 1)
        case int() | float() if not -_MOST <= value <= _MOST:
            raise ValueError(f"numbers are between {-_MOST} and {_MOST}")


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
TemplateVariables = Annotated[dict[Name, Any], AfterValidator(_checked)]
