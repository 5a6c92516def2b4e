"""The outcome of a job with several choices: their results, and the one stream of their deltas.

one handed back          ──▶ Retry with the stream so far; choices that have ended are not run again
one cancelled, one late  ──▶ cancelled, expired
all ended                ──▶ succeeded
one blocked by a rule    ──▶ failed
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from headrace.models.engine.reasoning import num_reasoning_tokens
from headrace.models.engine.requests import CompletionOutput, EngineRequest, FinishReason
from headrace.prompts.detokenizer import spell
from headrace.prompts.tokenizer import Tokenizer
from headrace.prompts.tool_calls import choice_name
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.payloads.job_payload import Usage
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import Checkpoint, ChoiceEnd
from headrace.store.tasks.generate import GeneratedText, GenerateOutput, GeneratePayload, PromptEcho
from headrace.workers.runs import outcome
from headrace.workers.runs.outcome import PROBATION_TOKENS, STATES, Retry
from headrace.workers.runs.output_guard import FilteredChoices, FilteredOutput, OutputGuard

# The first of these that a choice has is the job's.
_UNFINISHED = (FinishReason.HANDED_BACK, FinishReason.CANCELLED, FinishReason.DEADLINE)


def end_of(completion: CompletionOutput) -> ChoiceEnd | None:
    """Return how a choice has ended; None if it has not ended by itself."""
    if completion.finish_reason in _UNFINISHED:
        return None
    return ChoiceEnd(
        completion.finish_reason.value,
        completion.num_prompt_tokens,
        completion.num_output_tokens,
        completion.stop_text,
    )


def ended_before(request: EngineRequest, known: Checkpoint, end: ChoiceEnd) -> CompletionOutput:
    """Return the result of a choice that has ended in an earlier attempt. ``known``: its own deltas."""
    return replace(
        _result(request, known, FinishReason(end.finish_reason)),
        num_prompt_tokens=end.input_tokens,
        reported_output_tokens=end.output_tokens,
        stop_text=end.stop_text,
    )


def not_begun(request: EngineRequest, known: Checkpoint, reason: FinishReason) -> CompletionOutput:
    """Return the result of a choice that was not submitted any more, because the job ended for this reason."""
    return _result(request, known, reason)


def _result(request: EngineRequest, known: Checkpoint, reason: FinishReason) -> CompletionOutput:
    return CompletionOutput(
        request_id=request.id,
        text="".join(known.deltas),
        token_ids=known.tokens,
        deltas=known.deltas,
        finish_reason=reason,
        num_prompt_tokens=len(request.prompt),
        queued_s=0.0,
        first_token_s=None,
        total_s=0.0,
        delta_token_ids=known.token_ids,
        num_reasoning_tokens=num_reasoning_tokens(request.reasoning, known.tokens),
    )


def unfinished(completions: Sequence[CompletionOutput]) -> FinishReason | None:
    """Return why the job ends or pauses before all choices have ended; None if all have."""
    reasons = {one.finish_reason for one in completions}
    return next((reason for reason in _UNFINISHED if reason in reasons), None)


def completed(
    claim: Claim,
    payload: GeneratePayload,
    completions: Sequence[CompletionOutput],
    waited_s: float,
    start: Checkpoint,
    stream: Checkpoint,
    tokenizer: Tokenizer,
    rules: OutputGuard | None = None,
    *,
    prompts: Sequence[PromptEcho | None],
) -> Finish | Retry:
    """Return the outcome of the choices, in their order. ``stream`` has the deltas of all, with those of ``start``.

    ``prompts`` are for the output, one for each choice. The other arguments are as in ``outcome.completed``.
    """
    reason = unfinished(completions)
    if reason is FinishReason.HANDED_BACK:
        return _handed_back(claim, completions, waited_s, start, stream)
    filtered = _filtered(stream, len(completions), rules)
    used = _usage(claim, payload, completions, waited_s, start).model_dump()
    if (rule := next((one.blocked_by for one in filtered.outputs if one.blocked_by is not None), None)) is not None:
        return outcome.blocked(claim, rule, used)
    if rules is not None and rules.holds_back:
        # Logprobs would reveal tokens that the policy has replaced.
        stream = replace(stream, logprobs=())
    choices = [
        _choice(payload, claim.job_id, number, completion, output, stream, tokenizer)
        for number, (completion, output) in enumerate(zip(completions, filtered.outputs, strict=True))
    ]
    choices = [one.model_copy(update={"prompt": echo}) for one, echo in zip(choices, prompts, strict=True)]
    state = JobState.SUCCEEDED if reason is None else STATES[reason]
    return Finish(
        job_id=claim.job_id,
        epoch=claim.epoch,
        state=state,
        output=_output(choices),
        error=outcome.expiry_error(claim) if state is JobState.EXPIRED else None,
        usage=used,
        deltas=filtered.pieces,
        marks=filtered.marks,
        lineage=start.lineage,
        logprobs=stream.logprobs,
        tenant_id=claim.tenant_id,
    )


def _handed_back(
    claim: Claim, completions: Sequence[CompletionOutput], waited_s: float, start: Checkpoint, stream: Checkpoint
) -> Retry:
    num_new = sum(len(one.token_ids) for one in completions) - len(start.tokens)
    own_s = min((one.first_token_s for one in completions if one.first_token_s is not None), default=None)
    first_token_s = outcome.job_first_token_s(start, claim.queued_s + waited_s, own_s)
    retry = outcome.handed_back(
        cleared=outcome.is_on_probation(claim) and num_new >= PROBATION_TOKENS,
        checkpoint=replace(stream, first_token_s=first_token_s) if stream.deltas else None,
    )
    return retry if own_s is None else replace(retry, first_token_ms=round((waited_s + own_s) * 1000, 3))


def _filtered(stream: Checkpoint, num_choices: int, rules: OutputGuard | None) -> FilteredChoices:
    if rules is not None:
        return rules.apply_each(stream.deltas, stream.marks, num_choices)
    each = (stream.of_choice(number).deltas for number in range(num_choices))
    return FilteredChoices(stream.deltas, stream.marks, tuple(FilteredOutput("".join(own), own) for own in each))


def _choice(
    payload: GeneratePayload,
    job_id: str,
    number: int,
    completion: CompletionOutput,
    filtered: FilteredOutput,
    stream: Checkpoint,
    tokenizer: Tokenizer,
) -> GeneratedText:
    text = outcome.answer(payload, choice_name(job_id, number), filtered.text, completion.finish_reason)
    rows = [*chain.from_iterable(stream.of_choice(number).logprobs)]
    return text.model_copy(
        update={
            "logprobs": spell(tokenizer, rows) if rows else None,
            "policy": filtered.hits or None,
            "stop_text": completion.stop_text,
        }
    )


def _output(choices: Sequence[GeneratedText]) -> dict[str, Any]:
    first = choices[0]
    output = GenerateOutput(text=first.text, finish_reason=first.finish_reason)
    plain: Mapping[str, Any] = output.model_dump(exclude_none=True)
    return {**plain, "choices": [choice.model_dump(exclude_none=True) for choice in choices]}


def _usage(
    claim: Claim,
    payload: GeneratePayload,
    completions: Sequence[CompletionOutput],
    waited_s: float,
    start: Checkpoint,
) -> Usage:
    """Return the usage: each prompt counts once, the tokens of all choices are added, and times are of the longest."""
    each = [outcome.usage(claim, one, waited_s, start) for one in completions]
    firsts = each[:: payload.n or 1]
    begun = [one.first_token_ms for one in each if one.first_token_ms is not None]
    own = [one.attempt_first_token_ms for one in each if one.attempt_first_token_ms is not None]
    return Usage(
        input_tokens=sum(one.input_tokens for one in firsts),
        output_tokens=sum(one.output_tokens for one in each),
        cached_tokens=sum(one.cached_tokens for one in firsts),
        reasoning_tokens=sum(one.reasoning_tokens for one in each),
        queue_ms=claim.queued_s * 1000,
        first_token_ms=min(begun, default=None),
        attempt_first_token_ms=min(own, default=None),
        compute_ms=max(one.compute_ms for one in each),
    )
