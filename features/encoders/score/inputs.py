"""Requests for scores of pairs: pairs for a reranker, single texts for an encoder of vectors."""

from headrace.features.encoders.classifier_folder import ClassifierSettings
from headrace.features.encoders.embed.inputs import Embedder, EmbedTokens, check_texts, text_tokens
from headrace.features.encoders.fitted_inputs import FittedInput, check_total, fit_texts, num_tokens
from headrace.features.encoders.score.task import SCORE, ScoreInput, ScorePayload, ScoreRequest
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, TaskInputs, no_folder, no_settings
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.payloads.job_payload import PinnedPolicy


def score_pairs(
    tokenizer: Tokenizer, settings: ClassifierSettings, source: ScoreInput, *, truncate: bool = False
) -> tuple[FittedInput, ...]:
    """Return each pair as tokens. ``truncate``: the second text may be cut at its end.

    Raises InvalidRequest that names the first of ``text_2`` whose pair does not fit (code
    ``context_length_exceeded``), and if all pairs together have too many tokens.
    """
    found = tuple(
        fit_texts(tokenizer, pair, settings.context_window, f"input.text_2[{index}]", truncate=truncate)
        for index, pair in enumerate(source.pairs)
    )
    check_total(num_tokens(found), "input.text_2")
    return found


def score_texts(tokenizer: Tokenizer, embedder: Embedder, source: ScoreInput, *, truncate: bool = False) -> EmbedTokens:
    """Return the texts of ``text_1``, then those of ``text_2``, as tokens. Raises as ``score_pairs``."""
    named = [(text, f"input.text_1[{index}]") for index, text in enumerate(source.text_1)]
    named += [(text, f"input.text_2[{index}]") for index, text in enumerate(source.text_2)]
    prompt = embedder.default_prompt
    found = [text_tokens(tokenizer, embedder, prompt + text, param, truncate=truncate) for text, param in named]
    tokens = EmbedTokens(tuple(ids for ids, _ in found), tuple(num_cut for _, num_cut in found))
    check_total(tokens.num_tokens, "input.text_2")
    return tokens


def _num_tokens(request: ScoreRequest, model: InputModel) -> int:
    """Return the tokens that the model is given: it is an encoder of vectors or a reranker."""
    settings: Embedder | ClassifierSettings = model.settings
    if isinstance(settings, Embedder):
        check_texts(settings)
        return score_texts(model.tokenizer, settings, request.input, truncate=request.truncate).num_tokens
    return num_tokens(score_pairs(model.tokenizer, settings, request.input, truncate=request.truncate))


def prepare(request: ScoreRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. A policy changes nothing in scores."""
    return Prepared(ScorePayload(input=request.input, truncate=request.truncate), _num_tokens(request, model))


def check_length(request: ScoreRequest, model: InputModel) -> ScoreRequest:
    """Return the request; raise InvalidRequest if a text or pair is longer than the context window."""
    _num_tokens(request, model)
    return request


PART = TaskInputs(
    spec=SCORE,
    prepare=prepare,
    cut_to_length=check_length,
    is_quick=lambda _request, _model: True,
    read_settings=no_settings,
    is_folder=no_folder,
)
