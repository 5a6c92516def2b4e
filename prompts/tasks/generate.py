"""Requests for generated text: the prompt, whether it fits the context window, and the payload for the worker."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.prompts.answer_reader import THINK_TAGS, ends_with
from headrace.prompts.chat_server import CALL_STYLE, ChatServer, check_fields, least_tokens
from headrace.prompts.fill_in_middle import around_gap
from headrace.prompts.special_tokens import with_marks
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, TaskInputs
from headrace.prompts.tokenizer import ApproximateTokenizer, Tokenizer
from headrace.prompts.tool_grammar import grammar_for, with_tools
from headrace.prompts.truncation import truncate
from headrace.prompts.vision.chat_images import check_message_images, image_tokens
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import images_of
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.payloads.reasoning import ReasoningFormat
from headrace.store.payloads.sampling_params import Sampling
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.tasks.generate import GENERATE, GenerateInput, GeneratePayload, GenerateRequest

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

DEFAULT_MAX_TOKENS = 1024
"""What a request without ``max_tokens`` may produce, if the context window leaves as much."""


_MAX_ECHOED = 131_072
_MARK_TOKENS = 16
"""The end of a prompt that shows if it begins or ends the reasoning."""


def prepare(request: GenerateRequest, model: InputModel, policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. The payload's ``max_tokens`` is a number."""
    request = _shortened(request, model)
    source = request.input
    if images_of(source):
        check_message_images(source, model.settings)
    lengths = _prompt_lengths(source, model)
    max_tokens = _fit_each(source, lengths, model, request.sampling.max_tokens)
    if request.sampling.grammar is not None:
        model.grammars.check(request.sampling.grammar.kind, request.sampling.grammar.text)
    sampling = request.sampling.with_defaults(model.sampling)
    sampling = sampling.model_copy(update={"max_tokens": max_tokens})
    _check_tokens(model.tokenizer, sampling, max_tokens)
    _check_echo(sampling, sum(lengths) * (request.n or 1))
    if model.tokenizer.reasoning is None and not _is_behind_chat(model):
        # It changes nothing, and a worker of an older release does not know it.
        source = source.model_copy(update={"reasoning": None})
    # A worker of an older release reads a payload without ``n`` and ``truncated``.
    n = None if request.n == 1 else request.n
    payload = GeneratePayload(
        input=source,
        n=n,
        sampling=sampling,
        policy=policy,
        truncated=request.truncated,
        template=request.prompt_use,
    )
    if _is_behind_chat(model):
        check_fields(source, sampling)
        style = CALL_STYLE if source.callable_tools else None
        payload = payload.model_copy(update={"tool_style": style, "reasoning": THINK_TAGS})
        return Prepared(payload, sum(lengths), max_tokens * payload.num_choices)
    if source.callable_tools:
        payload = with_tools(payload, model.tokenizer, model.grammars)
    payload = payload.model_copy(update={"reasoning": _reasoning(model.tokenizer, payload, max_tokens)})
    return Prepared(payload, sum(lengths), max_tokens * payload.num_choices)


def _reasoning(tokenizer: Tokenizer, payload: GeneratePayload, max_tokens: int) -> ReasoningFormat | None:
    """Return how the reasoning stands in the answer to a conversation; None if there can be none."""
    support = tokenizer.reasoning
    if support is None or payload.input.messages is None:
        return None
    end = tokenizer.decode(build_prompt(tokenizer, payload.input)[-_MARK_TOKENS:])
    if ends_with(end, support.format.closing):
        return None
    is_open = ends_with(end, support.format.opening)
    has_grammar = payload.sampling.grammar is not None
    if has_grammar and not is_open and not support.is_controlled:
        return None  # it may not reason at all, so the grammar begins at once
    bounds = {
        "is_open": is_open,
        "is_forced": has_grammar and not is_open,
        "max_tokens": support.budget(payload.input.reasoning, max_tokens),
    }
    return support.format.model_copy(update=bounds)


def _prompt_lengths(source: GenerateInput, model: InputModel) -> list[int]:
    """Return the tokens of each prompt. Raises InvalidRequest."""
    lengths = []
    for index, one in enumerate(source.each_prompt):
        try:
            lengths.append(len(build_prompt(model.tokenizer, one)))
        except InvalidRequest as error:
            raise _of_prompt(error, source, index) from error
    return lengths


def _fit_each(source: GenerateInput, lengths: Sequence[int], model: InputModel, max_tokens: int | None) -> int:
    """Return how many tokens may be produced after each of the prompts. Raises InvalidRequest as ``fit`` does."""
    most = []
    for index, num_tokens in enumerate(lengths):
        try:
            most.append(_fit_window(model, num_tokens, max_tokens))
        except InvalidRequest as error:
            raise _of_prompt(error, source, index) from error
    return min(most)


def _of_prompt(error: InvalidRequest, source: GenerateInput, index: int) -> InvalidRequest:
    """Return the error with the place of the prompt among several."""
    if source.prompts is not None and (error.param or "").startswith("input"):
        error.param = f"input.prompts[{index}]"
    return error


def _check_tokens(tokenizer: Tokenizer, sampling: Sampling, max_tokens: int) -> None:
    """Raise InvalidRequest for a token that the model does not have, or more ``min_tokens`` than ``max_tokens``."""
    if (sampling.min_tokens or 0) > max_tokens:
        raise InvalidRequest(
            f"`sampling.min_tokens` is {sampling.min_tokens}, and at most {max_tokens} tokens are produced",
            param="sampling.min_tokens",
        )
    if isinstance(tokenizer, ApproximateTokenizer):
        return  # only the server knows its tokens
    for name, token_ids in sampling.named_tokens.items():
        if token_ids and max(token_ids) >= tokenizer.vocab_size:
            raise InvalidRequest(
                f"token id {max(token_ids)} is not in the model's vocabulary of {tokenizer.vocab_size}",
                param=f"sampling.{name}",
            )


def _check_echo(sampling: Sampling, num_tokens: int) -> None:
    """Raise InvalidRequest for more log probabilities of prompt tokens than one output should hold."""
    if sampling.scores_prompt and num_tokens * (1 + (sampling.logprobs or 0)) > _MAX_ECHOED:
        raise InvalidRequest(
            f"the prompt has {num_tokens} tokens, and at most {_MAX_ECHOED} log probabilities of it are returned: "
            "ask for fewer `sampling.logprobs`, or shorten the prompt",
            param="sampling.logprobs",
        )


def cut_to_length(request: GenerateRequest, model: InputModel) -> GenerateRequest:
    """Return the request, shortened if it is too long and allows that; raise InvalidRequest."""
    cut = _shortened(request, model)
    _fit_each(cut.input, _prompt_lengths(cut.input, model), model, request.sampling.max_tokens)
    return cut


def is_quick(request: GenerateRequest, model: InputModel) -> bool:
    """Return True if no grammar has to be compiled to prepare the request, and no image decoded."""
    if images_of(request.input):
        return False
    grammar = request.sampling.grammar
    if request.input.callable_tools and not _is_behind_chat(model):
        grammar = grammar_for(request.input, model.tokenizer, grammar)
    return grammar is None or model.is_compiled(grammar.kind, grammar.text)


def count_tokens(request: GenerateRequest, model: InputModel) -> int:
    """Return how many tokens the model would be given. Raises as ``prepare`` does."""
    check_message_images(request.input, model.settings)
    return sum(_prompt_lengths(_shortened(request, model).input, model))


def render(source: GenerateInput, model: InputModel) -> tuple[str, int]:
    """Return the text of an input with one prompt as the model reads it, and its number of tokens.

    Raises InvalidRequest as ``build_prompt`` does.
    """
    num_tokens = len(build_prompt(model.tokenizer, source))
    if source.messages is None:
        return source.prompt or "", num_tokens
    return model.tokenizer.render(source.messages), num_tokens


def _shortened(request: GenerateRequest, model: InputModel) -> GenerateRequest:
    """Return the request with the input that the model is given. Raises InvalidRequest."""
    how = request.truncation
    if how.refuses:
        return request
    if how.cuts_texts and isinstance(model.tokenizer, ApproximateTokenizer):
        raise InvalidRequest(
            "the tokens of this model are only estimated, so no text can be cut at a token: use `oldest_turns`",
            param="truncation",
        )
    room = _room(model.window, request.sampling.max_tokens)
    source, truncated = truncate(
        request.input, how, room, lambda one: len(build_prompt(model.tokenizer, one)), request.template_place
    )
    return request if truncated is None else request.shortened(source, truncated)


def _fit_window(model: InputModel, num_tokens: int, max_tokens: int | None) -> int:
    if isinstance(model.tokenizer, ApproximateTokenizer):
        num_tokens = least_tokens(num_tokens)
    try:
        return fit(model.window, num_tokens, max_tokens)
    except InvalidRequest as error:
        if model.window < model.context_window:
            error.message += f" (the model's own is {model.context_window}, but its workers hold no more)"
        raise


def _is_behind_chat(model: InputModel) -> bool:
    """Return True if a server of chat completions runs the model."""
    return bool(model.settings)


def build_prompt(tokenizer: Tokenizer, source: GenerateInput) -> list[int]:
    """Return the prompt's token ids: the conversation through the chat template, or the raw prompt.

    An image counts as so many tokens as are estimated: only chat servers get images, and they get no ids.
    Raises InvalidRequest if the template refuses the conversation, the model has no such token, or nothing is left to
    continue.
    """
    if source.token_ids is not None:
        return _known(tokenizer, source.token_ids)
    mark = ""
    if source.special_tokens is not None:
        source, mark = with_marks(source, tokenizer.without_special)
    if source.messages is not None:
        param = "input.messages"
        # A template writes the special tokens itself.
        text = tokenizer.render(source.messages, source.callable_tools, source.chat_template_kwargs, source.reasoning)
    else:
        param = "input.prompt"
        text = source.prompt or ""
        if source.suffix is not None:
            text = around_gap(tokenizer, text, source.suffix)
    first, *rest = text.split(mark) if mark else [text]
    ids = tokenizer.encode(first, add_special=source.messages is None)
    for part in rest:
        ids += tokenizer.encode(part, add_special=False)
    if not ids:
        raise InvalidRequest("the prompt has no tokens: there is nothing to continue", param=param)
    return ids + [0] * image_tokens(source) if images_of(source) else ids


def _chat_server(version: "ModelVersion") -> ChatServer | None:
    return ChatServer(version.engine.takes_images) if version.engine.kind is EngineKind.OPENAI else None


def _known(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[int]:
    if max(token_ids) >= tokenizer.vocab_size:
        raise InvalidRequest(
            f"token id {max(token_ids)} is not in the model's vocabulary of {tokenizer.vocab_size}",
            param="input.token_ids",
        )
    return list(token_ids)


def fit(context_window: int, prompt_len: int, max_tokens: int | None) -> int:
    """Return how many tokens may be produced after a prompt of ``prompt_len`` tokens.

    Raises InvalidRequest with code ``context_length_exceeded`` if the prompt alone fills the window, or the prompt and
    ``max_tokens`` together do not fit.
    """
    room = context_window - prompt_len
    # LangChain and LiteLLM know by the first words, which are others' own, that a shorter prompt is what helps.
    if room < 1:
        raise InvalidRequest(
            f"the prompt is too long: this model's maximum context length is {context_window} tokens, and it has "
            f"{prompt_len}: shorten the prompt",
            code="context_length_exceeded",
            param="input",
        )
    if max_tokens is None:
        return min(room, DEFAULT_MAX_TOKENS)
    if max_tokens > room:
        raise InvalidRequest(
            f"this model's maximum context length is {context_window} tokens, the prompt has {prompt_len} and "
            f"`max_tokens` is {max_tokens}: at most {room} tokens can be produced",
            code="context_length_exceeded",
            param="sampling.max_tokens",
        )
    return max_tokens


def _room(context_window: int, max_tokens: int | None) -> int:
    """Return the tokens of a prompt that leaves room for its answer.

    Without ``max_tokens`` a quarter of the window is left for the answer, at most DEFAULT_MAX_TOKENS.
    """
    return context_window - (min(DEFAULT_MAX_TOKENS, context_window // 4) if max_tokens is None else max_tokens)


GENERATE_INPUTS = TaskInputs(
    spec=GENERATE,
    prepare=prepare,
    cut_to_length=cut_to_length,
    is_quick=is_quick,
    read_settings=lambda version, _read_file: _chat_server(version),
    # By the names of transformers and of vLLM.
    unfit_classes=re.compile(
        r"For(?!CausalLM|ConditionalGeneration)[A-Z]"
        r"|(?<!LMHead)(?<!LM)(?<!MT)(?<!Chat)(?<!ChatGLM)(?<!Omni)(?<!Audio)(?<!Ultravox)Model$"
    ),
)
