"""Requests for generated text: the prompt, whether it fits the window, and the payload that the worker needs."""

from prompts.prompt import build_prompt, fit, shorten
from prompts.tasks.task_inputs import InputModel, Prepared, TaskInputs
from prompts.tool_grammar import grammar_for, with_tools
from store.errors import InvalidRequest
from store.payloads.job_payload import PinnedPolicy
from store.tasks.generate import GENERATE, GenerateInput, GeneratePayload, GenerateRequest, Truncation


def prepare(request: GenerateRequest, model: InputModel, policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. The payload's ``max_tokens`` is a number."""
    source = _source(request, model)
    num_tokens = len(build_prompt(model.tokenizer, source))
    max_tokens = _fit(model, num_tokens, request.sampling.max_tokens)
    if request.sampling.grammar is not None:
        model.grammars.check(request.sampling.grammar.kind, request.sampling.grammar.text)
    sampling = request.sampling.with_defaults(model.sampling)
    sampling = sampling.model_copy(update={"max_tokens": max_tokens})
    payload = GeneratePayload(input=source, sampling=sampling, policy=policy)
    if source.callable_tools:
        payload = with_tools(payload, model.tokenizer, model.grammars)
    return Prepared(payload, num_tokens, max_tokens)


def cut_to_length(request: GenerateRequest, model: InputModel) -> GenerateRequest:
    """Return the request, without its oldest turns if it is too long and allows that; raise InvalidRequest."""
    source = _source(request, model)
    num_tokens = len(build_prompt(model.tokenizer, source))
    _fit(model, num_tokens, request.sampling.max_tokens)
    return request.model_copy(update={"input": source})


def is_quick(request: GenerateRequest, model: InputModel) -> bool:
    """Return True if no grammar has to be compiled to prepare the request."""
    grammar = request.sampling.grammar
    if request.input.callable_tools:
        grammar = grammar_for(request.input, model.tokenizer, grammar)
    return grammar is None or model.is_compiled(grammar.kind, grammar.text)


def count_tokens(request: GenerateRequest, model: InputModel) -> int:
    """Return how many tokens the model would be given. Raises as ``prepare`` does."""
    return len(build_prompt(model.tokenizer, _source(request, model)))


def _source(request: GenerateRequest, model: InputModel) -> GenerateInput:
    """Return the input that the model is given, shortened if the request allows that and it is too long."""
    if request.truncation is Truncation.DISABLED:
        return request.input
    return shorten(model.tokenizer, request.input, model.window, request.sampling.max_tokens)


def _fit(model: InputModel, num_tokens: int, max_tokens: int | None) -> int:
    try:
        return fit(model.window, num_tokens, max_tokens)
    except InvalidRequest as error:
        if model.window < model.context_window:
            error.message += f" (the model's own is {model.context_window}, but its workers hold no more)"
        raise


GENERATE_INPUTS = TaskInputs(
    spec=GENERATE,
    prepare=prepare,
    cut_to_length=cut_to_length,
    is_quick=is_quick,
    read_settings=lambda _version, _read_file: None,
)
