"""Fields of a body whose caller waits for the job's answer, of all tasks: its tier, its options and its metadata."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictInt

from headrace.store.payloads.job_payload import MetadataKey, MetadataValue, ServiceClass, WebhookSpec
from headrace.store.payloads.strict_model import Strict

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
