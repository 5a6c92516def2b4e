"""Formats stored logprobs for the API: the model's tokenizer decodes each token id to its text."""

from collections.abc import Callable, Iterable
from typing import Any

from starlette.concurrency import run_in_threadpool

from producer_api.runtime import Runtime
from prompts.logprobs import spell
from store.jobs.jobs import Job
from store.payloads.logprobs import LogprobRow

FormatLogprobs = Callable[[Iterable[LogprobRow]], list[dict[str, Any]]]
"""Converts stored logprobs to OpenAI's entries: token, logprob, bytes, top_logprobs."""


async def logprob_formatter(runtime: Runtime, job: Job) -> FormatLogprobs | None:
    """Return the formatter for the job's model version; None if the job does not request logprobs."""
    if job.payload.get("sampling", {}).get("logprobs") is None:
        return None
    tokenizer = await run_in_threadpool(lambda: runtime.catalog.tokenizer(runtime.catalog.resolve(job.queue)))
    return lambda logprobs: [entry.model_dump() for entry in spell(tokenizer, logprobs)]
