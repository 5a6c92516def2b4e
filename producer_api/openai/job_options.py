"""Options of the job behind an OpenAI request, for all tasks: ``service_tier`` and the object ``job``."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from pydantic import StrictInt

from store.payloads.job_payload import ServiceClass, WebhookSpec
from store.payloads.strict_model import Strict

ServiceTier = Literal["auto", "default", "priority", "flex"]

JOB_FIELDS = ("priority", "deadline_ms", "max_attempts", "webhook")

# The client waits for the answer, so the default is the fastest class.
CLASSES: Mapping[ServiceTier | None, ServiceClass] = {
    None: ServiceClass.INTERACTIVE,
    "auto": ServiceClass.INTERACTIVE,
    "priority": ServiceClass.INTERACTIVE,
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
