"""The text completion request (OpenAI's older API) and its conversion to a job."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from headrace.features.openai.foreign_fields import FOREIGN
from headrace.features.openai.request_fields import TextRequest, job_of
from headrace.producer_api.http.job_options import IsHarmless, is_one_of, unsupported
from headrace.store.payloads.prompt_reference import PromptReference
from headrace.store.payloads.sampling_params import MAX_TOP_LOGPROBS
from headrace.store.tasks.generate import GenerateRequest


class CompletionRequest(TextRequest):
    """The body of ``POST /v1/completions``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "smollm2", "prompt": "The water wheel", "max_tokens": 16, "temperature": 0},
                {"model": "smollm2", "prompt": "The river", "max_tokens": 16, "logprobs": 2, "stream": True},
            ]
        },
    )

    input_field: ClassVar[str] = "prompt"
    refused: ClassVar[Mapping[str, IsHarmless]] = {
        **FOREIGN,
        "messages": is_one_of(),
        "add_special_tokens": is_one_of(True),
    }

    prompt: str | tuple[str, ...] | tuple[int, ...] | tuple[tuple[int, ...], ...] | PromptReference = Field(
        description="a text or its token ids, or a list of them: each gets `n` answers; or a prompt template"
    )
    # OpenAI's default.
    max_tokens: int | None = 16
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)


def to_job(completion: CompletionRequest) -> GenerateRequest:
    """Return the job for the request; raise InvalidRequest that names the request's field."""
    source = _source(completion.prompt)
    if completion.suffix:
        source |= {"suffix": completion.suffix}
    if completion.echo and completion.stream:
        raise unsupported("`echo` is not streamed: leave out `stream`", "echo")
    return job_of(completion, source, completion.logprobs, echo=bool(completion.echo))


def _source(prompt: Any) -> dict[str, Any]:
    if isinstance(prompt, PromptReference):
        return {"template": prompt}
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if prompt and isinstance(prompt[0], int):
        return {"token_ids": prompt}
    return _source(prompt[0]) if len(prompt) == 1 else {"prompts": prompt}
