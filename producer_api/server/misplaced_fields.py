"""Fields of a job that stand beside the object in which they belong, such as ``messages`` beside ``input``."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from headrace.store.tasks.registry import TASK_TAG, TASKS


def object_of(error: Mapping[str, Any]) -> str | None:
    """Return the object of the task's request that has the field of one of pydantic's errors; None if none has it.

    Only for an unknown field of the request itself, which stands in the error's place behind the tag of the task.
    """
    place: Sequence[str | int] = error["loc"]
    tag, name = (str(place[-2]), place[-1]) if len(place) > 1 else ("", "")
    task = TASKS.get(tag.removeprefix(TASK_TAG)) if tag.startswith(TASK_TAG) else None
    if error["type"] != "extra_forbidden" or task is None:
        return None
    for outer, field in task.request.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name in inner.model_fields:
            return outer
    return None
