"""What the routes of the tasks on text encoders share: fields of the body, and fields of the answer.

Bounds are in each ``task`` and the model's files.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.features.encoders.encoder_fields import CutInput
from headrace.features.encoders.foreign_encoding import ENCODING_INSTEAD, FOREIGN_ENCODING
from headrace.producer_api.http.job_options import refuse_near_misses, refuse_unsupported
from headrace.producer_api.tasks.task_body import Order, TaskBody, order_of, without_input
from headrace.store.jobs.jobs import Job


class EncodingBody(TaskBody):
    """The fields of every body beside the task's own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    truncate: bool | Literal["NONE", "END", "none", "end"] | None = Field(
        None, description="true or `end`: inputs over the context window are cut at their end; without it refused"
    )

    @property
    def cuts(self) -> bool:
        """True if inputs that are too long are cut."""
        return self.truncate is True or (isinstance(self.truncate, str) and self.truncate.lower() == "end")


class EncodingUsage(BaseModel):
    """What the answer cost: the tokens of all inputs."""

    prompt_tokens: int = Field(description="tokens of all inputs, or of all pairs where pairs are computed")
    total_tokens: int = Field(description="the same")


class EncodingAnswer(BaseModel):
    """The fields of every answer beside the task's own."""

    object: Literal["list"] = "list"
    id: str = Field(description="the job's id")
    model: str = Field(description="the model version, as `name@3`")
    usage: EncodingUsage = Field(description="what it cost")
    truncated: list[CutInput] | None = Field(
        None, description="with `truncate`: the inputs that were cut; absent if none was"
    )


def encoding_order(
    asked: EncodingBody, kind: type[Order], fields: Mapping[str, Any], rename: Callable[[str], str] = without_input
) -> Order:
    """Return the job, as ``order_of``. Fields of other servers are refused with what to send instead."""
    refuse_unsupported(asked, FOREIGN_ENCODING, ENCODING_INSTEAD)
    refuse_near_misses(asked, FOREIGN_ENCODING)
    return order_of(asked, kind, {**fields, "truncate": asked.cuts}, rename)


def encoding_answer(job: Job, output: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the answer with the task's own ``fields``. ``output`` is the job's."""
    tokens = int((job.usage or {}).get("input_tokens", job.input_tokens))
    cut = {"truncated": output["truncated"]} if output.get("truncated") else {}
    return {
        "object": "list",
        "id": job.id,
        "model": f"{job.model}@{job.model_version}",
        **fields,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        **cut,
    }
