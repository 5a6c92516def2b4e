"""How the logprobs in a job's stream read: the model's own tokenizer says what each token spells."""

from collections.abc import Callable, Iterable
from typing import Any

from starlette.concurrency import run_in_threadpool

from producer_api.runtime import Runtime
from prompts.logprobs import spell
from store.jobs.jobs import Job
from store.payloads.logprobs import TokenLogprobs

Spell = Callable[[Iterable[TokenLogprobs]], list[dict[str, Any]]]
"""From stored logprobs to entries of OpenAI's shape: token, logprob, bytes, top_logprobs."""


async def spelling_of(runtime: Runtime, job: Job) -> Spell | None:
    """Return the spelling of the job's model version; None for a job that asks for no logprobs."""
    if job.payload.get("sampling", {}).get("logprobs") is None:
        return None
    tokenizer = await run_in_threadpool(lambda: runtime.catalog.tokenizer(runtime.catalog.resolve(job.queue)))
    return lambda logprobs: [entry.model_dump() for entry in spell(tokenizer, logprobs)]
