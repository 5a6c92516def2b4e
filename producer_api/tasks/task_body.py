"""The body of a URL whose shape no other API sets: fields of the native job, and those of a caller that waits.

An error about the job's field is renamed to the field that the caller sent.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from headrace.producer_api.http.job_options import (
    CLASSES,
    JOB_FIELDS,
    JobOptions,
    MetadataText,
    ServiceTier,
    job_fields,
)
from headrace.producer_api.server.errors import from_validation
from headrace.store.errors import HeadraceError
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.strict_model import Strict

Order = TypeVar("Order", bound=JobOrder)


class TaskBody(Strict):
    """The fields that all tasks share. A subclass adds its own."""

    model: str = Field(description="which model: `name`, `name@alias` or `name@3`")
    user: str | None = Field(None, description="your own user, for whom the usage is counted")
    metadata: dict[str, MetadataText] | None = Field(None, description="your own keys and values")
    service_tier: ServiceTier | None = Field(None, description="auto and priority go first, default next, flex last")
    job: JobOptions | None = Field(None, description="options of the job behind the answer")


def without_input(name: str) -> str:
    """Return the body's field for a field of the job where the body has the fields of the job's input."""
    return name.removeprefix("input.")


def order_of(
    asked: TaskBody, kind: type[Order], fields: Mapping[str, Any], rename: Callable[[str], str] = without_input
) -> Order:
    """Return the job that a body asks for; ``fields`` are the task's own.

    ``rename`` returns the body's field for a field of the job. Raises InvalidRequest that names the field of the body.
    """
    body = {
        "model": asked.model,
        "service_class": CLASSES[asked.service_tier],
        "metadata": asked.metadata or {},
        "user": asked.user or None,
        **job_fields(asked.job),
        **fields,
    }
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise as_sent(from_validation(error.errors(include_input=False)), rename) from error


def as_sent(error: HeadraceError, rename: Callable[[str], str] = without_input) -> HeadraceError:
    """Return an error about a field of the job with the name of the body's field."""
    if error.param is not None:
        is_option = error.param.partition(".")[0] in JOB_FIELDS
        name = f"job.{error.param}" if is_option else rename(error.param)
        error.message = error.message.replace(f"`{error.param}`", f"`{name}`")
        error.param = name
    return error
