"""Requests for entities: each text as the tokens that a token classifier is given."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace.features.encoders.classifier_folder import (
    FAKE_WINDOW,
    Activation,
    ClassifierSettings,
    Head,
    head_of,
    read_classifier,
)
from headrace.features.encoders.fitted_inputs import FittedInput, check_total, fit_texts, num_tokens
from headrace.features.encoders.token_classify.task import (
    TOKEN_CLASSIFY,
    TokenClassifyInput,
    TokenClassifyPayload,
    TokenClassifyRequest,
)
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, ReadFile, TaskInputs
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.payloads.job_payload import PinnedPolicy

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

FAKE = ClassifierSettings(FAKE_WINDOW, ("O", "B-PER", "I-PER"), Activation.SOFTMAX, Head.TOKENS)
"""Of the token classifier without weights."""


def is_token_classifier(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of an encoder that classifies tokens."""
    return head_of(config) is Head.TOKENS


def settings_for(version: "ModelVersion", read_file: ReadFile) -> ClassifierSettings:
    """Return the settings of a registered token classifier."""
    return FAKE if version.is_fake else read_classifier({"config.json": read_file(version.files["config.json"])})


def token_classify_inputs(
    tokenizer: Tokenizer, settings: ClassifierSettings, source: TokenClassifyInput, *, truncate: bool = False
) -> tuple[FittedInput, ...]:
    """Return each text as tokens. ``truncate``: a text may be cut at its end. Raises as ``classify_inputs``."""
    found = tuple(
        fit_texts(tokenizer, text, settings.context_window, f"input.texts[{index}]", truncate=truncate)
        for index, text in enumerate(source.texts)
    )
    check_total(num_tokens(found), "input.texts")
    return found


def prepare(request: TokenClassifyRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. A policy changes nothing in entities: they are of the text after it."""
    inputs = token_classify_inputs(model.tokenizer, model.settings, request.input, truncate=request.truncate)
    payload = TokenClassifyPayload.model_validate(request.model_dump(include=set(TokenClassifyPayload.model_fields)))
    return Prepared(payload, num_tokens(inputs))


def check_length(request: TokenClassifyRequest, model: InputModel) -> TokenClassifyRequest:
    """Return the request; raise InvalidRequest if a text is longer than the context window."""
    token_classify_inputs(model.tokenizer, model.settings, request.input, truncate=request.truncate)
    return request


PART = TaskInputs(
    spec=TOKEN_CLASSIFY,
    prepare=prepare,
    cut_to_length=check_length,
    is_quick=lambda _request, _model: True,
    read_settings=settings_for,
    is_folder=is_token_classifier,
    folder_window=lambda files: read_classifier(files).context_window,
)
