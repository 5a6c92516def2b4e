"""Unknown fields of an OpenAI request are ignored, except that a likely typo of a known field is refused.

Otherwise ``"max_token": 3`` would be ignored, and the answer would have no token limit.
"""

from collections.abc import Container
from difflib import get_close_matches
from functools import lru_cache

from pydantic import BaseModel

from store.errors import InvalidRequest

MOST_UNKNOWN = 32
"""Most unknown fields in one request: comparing names takes time, and no client sends so many."""

_LONGEST = 40
# Similarity by ``difflib``: ``max_token``, ``temprature`` and ``models`` are above it, ``store`` and ``stop`` below.
_CLOSE = 0.8


@lru_cache(maxsize=4096)
def _closest_field(known: tuple[str, ...], name: str) -> str | None:
    plain = {_plain(one): one for one in known}
    if (one := plain.get(_plain(name))) is not None:
        return one  # ``maxTokens``
    return next(iter(get_close_matches(name, known, 1, _CLOSE)), None)


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def refuse_near_misses(request: BaseModel, skip: Container[str] = ()) -> None:
    """Raise InvalidRequest for an unknown field with a name close to a known one.

    ``skip``: names that are checked elsewhere.
    """
    unknown = [name for name, value in (request.model_extra or {}).items() if value is not None and name not in skip]
    if len(unknown) > MOST_UNKNOWN:
        raise InvalidRequest(f"{len(unknown)} unknown fields: at most {MOST_UNKNOWN} are accepted")
    known = tuple(type(request).model_fields)
    for name in unknown:
        meant = _closest_field(known, name) if len(name) <= _LONGEST else None
        if meant is not None:
            raise InvalidRequest(
                f"unknown field `{name}`: did you mean `{meant}`?", code="unsupported_parameter", param=name
            )
