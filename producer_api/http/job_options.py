"""Fields of a body whose caller waits for the job's answer, of all tasks: its tier, its options and its metadata.

Of the fields that a body has and its model has not, those that would change the answer, and likely typos, are refused.
Others are ignored. If the typo ``"max_token": 3`` were, the answer would have no token limit.
"""

import json
from collections.abc import Callable, Container, Mapping
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StrictInt

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import MetadataKey, MetadataValue, ServiceClass, WebhookSpec
from headrace.store.payloads.strict_model import Strict

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


ServiceTier = Literal["auto", "default", "priority", "fast", "flex"]

JOB_FIELDS = ("priority", "deadline_ms", "max_attempts", "webhook")

# The client waits for the answer, so the default is the fastest class.
CLASSES: Mapping[ServiceTier | None, ServiceClass] = {
    None: ServiceClass.INTERACTIVE,
    "auto": ServiceClass.INTERACTIVE,
    "priority": ServiceClass.INTERACTIVE,
    "fast": ServiceClass.INTERACTIVE,  # OpenAI's newer name
    "default": ServiceClass.STANDARD,
    "flex": ServiceClass.BATCH,
}


class OnDisconnect(StrEnum):
    """What happens to the job when the client disconnects before the end."""

    CANCEL = "cancel"
    CONTINUE = "continue"


class JobOptions(Strict):
    """Options that OpenAI's API lacks; the official client sends them with ``extra_body={"job": {...}}``."""

    priority: StrictInt | None = None
    deadline_ms: StrictInt | None = None
    max_attempts: StrictInt | None = None
    webhook: WebhookSpec | None = None
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL


def job_fields(options: JobOptions | None) -> dict[str, Any]:
    """Return the options as fields of a native job request."""
    if options is None:
        return {}
    given: Mapping[str, Any] = {name: getattr(options, name) for name in JOB_FIELDS}
    return {name: value for name, value in given.items() if value is not None}


def is_kept(options: JobOptions | None) -> bool:
    """Return True if the job continues when the client disconnects."""
    return options is not None and options.on_disconnect is OnDisconnect.CONTINUE


def _as_text(value: object) -> object:
    """Return a number or a boolean of ``metadata`` as the text that stands for it in JSON."""
    return json.dumps(value) if isinstance(value, bool | int | float) else value


MetadataText = Annotated[MetadataValue, BeforeValidator(_as_text, json_schema_input_type=str | bool | int | float)]
"""A value of ``metadata``: numbers and booleans are kept as texts."""

Metadata = Annotated[dict[MetadataKey, MetadataText], Field(max_length=16)]
"""The ``metadata`` of what is stored without a job of its own."""
