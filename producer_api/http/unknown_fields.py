"""Fields that a body has and its model has not: those that would change the answer, and likely typos, are refused.

Other unknown fields are ignored. If the typo ``"max_token": 3`` were, the answer would have no token limit.
"""

from collections.abc import Callable, Container, Mapping
from difflib import get_close_matches
from functools import lru_cache

from pydantic import BaseModel

from headrace.store.errors import InvalidRequest

MOST_UNKNOWN = 32
"""Most unknown fields in one request: comparing names takes time, and no client sends so many."""

_LONGEST_NAME = 40
# Similarity by ``difflib``: ``max_token``, ``temprature`` and ``models`` are above it, ``store`` and ``stop`` below.
_CLOSE = 0.8


IsHarmless = Callable[[object], bool]


def is_one_of(*harmless: object) -> IsHarmless:
    """Return a predicate that accepts these values and null: values that have no effect on the answer."""
    return lambda value: value is None or any(value == one and type(value) is type(one) for one in harmless)


def is_off(value: object) -> bool:
    """Accept null, zero, false and what is empty."""
    return not value


INSTEAD_OF_PRIORITY = "send `job.priority`, where 0 goes first and 9 last"
INSTEAD_OF_CACHE_SALT = "leave it out, no other tenant shares the prefixes of yours"


def unsupported(message: str, param: str) -> InvalidRequest:
    """Return the error for an unsupported field."""
    return InvalidRequest(message, code="unsupported_parameter", param=param)


def refuse_unsupported(request: BaseModel, refused: Mapping[str, IsHarmless], instead: Mapping[str, str]) -> None:
    """Raise InvalidRequest for a field of ``refused`` with a value that would change the answer.

    ``instead``: what to send instead, by the name of the field.
    """
    for name, value in (request.model_extra or {}).items():
        is_harmless = refused.get(name)
        if is_harmless is not None and not is_harmless(value):
            raise unsupported(f"`{name}` is not supported: {instead.get(name, 'leave it out')}", name)


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
        meant = _closest_field(known, name) if len(name) <= _LONGEST_NAME else None
        if meant is not None:
            raise InvalidRequest(
                f"unknown field `{name}`: did you mean `{meant}`?", code="unsupported_parameter", param=name
            )
