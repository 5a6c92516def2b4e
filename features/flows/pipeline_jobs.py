"""The URL by which a job names its pipeline, `/v1/pipelines/{name}/jobs`: for requests and for lines of batches."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ConfigDict, Field

from headrace.producer_api.jobs.job_views import job_object
from headrace.producer_api.reads.job_loader import restored
from headrace.producer_api.streaming.answers import answer_of
from headrace.store.errors import HeadraceError
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.job_payload import JobTerms
from headrace.store.tasks.flow import PipelineRequest

_URL = re.compile(r"/v1/pipelines/([A-Za-z0-9][A-Za-z0-9._-]{0,127}(?:@[A-Za-z0-9._-]{1,64})?)/jobs")


class PipelineJob(JobTerms):
    """The body of ``POST /v1/pipelines/{name}/jobs``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"input": {"text": "The mill is by the river. It has ground corn since 1840."}}]
        }
    )

    input: dict[str, Any] = Field(default_factory=dict, description="as the pipeline's `input_schema` has it")


@dataclass(frozen=True, slots=True)
class ParsedPipelineJob:
    """The body of a line of a batch, as a job of a pipeline."""

    job: PipelineRequest

    def answer(self, job: Job) -> dict[str, Any]:
        """Return the job as its route shows it; raise JobUnanswered for one that has not succeeded."""
        answer_of(job)
        return job_object(restored(job)).model_dump(mode="json", exclude={"steps"})

    def complain(self, error: HeadraceError) -> HeadraceError:
        """Return the error: its fields have the names of the body."""
        return error


def request_of(pipeline: str, body: PipelineJob) -> PipelineRequest:
    """Return the body as the request that names the pipeline itself."""
    terms = {name: getattr(body, name) for name in JobTerms.model_fields}
    return PipelineRequest.model_construct(**terms, task="flow", pipeline=pipeline, input=body.input)


def reader_of(url: str) -> Callable[[Mapping[str, Any]], ParsedPipelineJob] | None:
    """Return the reader of a body for this URL; None if it is that of no pipeline."""
    match = _URL.fullmatch(url)
    return None if match is None else partial(_parse, match[1])


def _parse(pipeline: str, body: Mapping[str, Any]) -> ParsedPipelineJob:
    return ParsedPipelineJob(request_of(pipeline, PipelineJob.model_validate(body)))
