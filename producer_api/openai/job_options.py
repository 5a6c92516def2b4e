"""What OpenAI-shaped requests say of the job behind them, whatever its task: ``service_tier`` and the object `job`."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from pydantic import StrictInt

from store.payloads.job_payload import ServiceClass, WebhookSpec
from store.payloads.strict_model import Strict

ServiceTier = Literal["auto", "default", "priority", "flex"]

JOB_FIELDS = ("priority", "deadline_ms", "max_attempts", "webhook")

# Somebody waits for the answer, so without a word about it, it goes first.
CLASSES: Mapping[ServiceTier | None, ServiceClass] = {
    None: ServiceClass.INTERACTIVE,
    "auto": ServiceClass.INTERACTIVE,
    "priority": ServiceClass.INTERACTIVE,
    "default": ServiceClass.STANDARD,
    "flex": ServiceClass.BATCH,
}


class OnDisconnect(StrEnum):
    """What becomes of the job when its caller leaves before the end."""

    CANCEL = "cancel"
    CONTINUE = "continue"


class JobOptions(Strict):
    """What OpenAI has no word for; the official client sends it with ``extra_body={"job": {...}}``."""

    priority: StrictInt | None = None
    deadline_ms: StrictInt | None = None
    max_attempts: StrictInt | None = None
    webhook: WebhookSpec | None = None
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL


def job_fields(options: JobOptions | None) -> dict[str, Any]:
    """Return the fields of a native request that the object ``job`` gives."""
    if options is None:
        return {}
    given: Mapping[str, Any] = {name: getattr(options, name) for name in JOB_FIELDS}
    return {name: value for name, value in given.items() if value is not None}


def is_kept(options: JobOptions | None) -> bool:
    """Return True if the job goes on when its caller leaves before the end."""
    return options is not None and options.on_disconnect is OnDisconnect.CONTINUE
