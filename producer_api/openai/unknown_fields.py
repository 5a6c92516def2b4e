"""Fields of an OpenAI-shaped request that no face knows: most pass, but one that is a slip of the pen is refused.

``"max_token": 3`` would be taken in silence, and the answer would be as long as it likes.
"""

from collections.abc import Container
from difflib import get_close_matches
from functools import lru_cache

from pydantic import BaseModel

from store.errors import InvalidRequest

MOST_UNKNOWN = 32
"""Fields that are not known in one request; comparing names takes time, and no client sends so many."""

_LONGEST = 40
# By the measure of ``difflib``: ``max_token``, ``temprature`` and ``models`` are close, ``store`` and ``stop`` are not.
_CLOSE = 0.8


@lru_cache(maxsize=4096)
def _meant(known: tuple[str, ...], name: str) -> str | None:
    plain = {_plain(one): one for one in known}
    if (one := plain.get(_plain(name))) is not None:
        return one  # ``maxTokens``
    return next(iter(get_close_matches(name, known, 1, _CLOSE)), None)


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def refuse_near_misses(asked: BaseModel, spoken_of: Container[str] = ()) -> None:
    """Raise InvalidRequest for a field whose name is nearly one that the request may have.

    ``spoken_of`` are fields that are no part of the request and are looked at elsewhere.
    """
    unknown = [name for name, value in (asked.model_extra or {}).items() if value is not None and name not in spoken_of]
    if len(unknown) > MOST_UNKNOWN:
        raise InvalidRequest(f"{len(unknown)} fields are not known here: send no more than {MOST_UNKNOWN} of those")
    known = tuple(type(asked).model_fields)
    for name in unknown:
        meant = _meant(known, name) if len(name) <= _LONGEST else None
        if meant is not None:
            raise InvalidRequest(
                f"unknown field `{name}`: did you mean `{meant}`?", code="unsupported_parameter", param=name
            )
