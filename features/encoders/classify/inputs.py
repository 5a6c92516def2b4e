"""Requests for labels: each text or pair as the tokens that a classifier is given."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace.features.encoders.classifier_folder import (
    FAKE_WINDOW,
    Activation,
    ClassifierSettings,
    Head,
    head_of,
    num_labels,
    read_classifier,
)
from headrace.features.encoders.classify.task import CLASSIFY, ClassifyInput, ClassifyPayload, ClassifyRequest
from headrace.features.encoders.fitted_inputs import FittedInput, check_total, fit_texts, num_tokens
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, ReadFile, TaskInputs
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.payloads.job_payload import PinnedPolicy

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

FAKE = ClassifierSettings(FAKE_WINDOW, ("negative", "neutral", "positive"), Activation.SOFTMAX)
"""Of the classifier without weights."""


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of an encoder that classifies texts. One label: see ``rerank``."""
    return head_of(config) is Head.SEQUENCE and num_labels(config) > 1


def settings_for(version: "ModelVersion", read_file: ReadFile) -> ClassifierSettings:
    """Return the settings of a registered classifier."""
    return FAKE if version.is_fake else read_classifier({"config.json": read_file(version.files["config.json"])})


def classify_inputs(
    tokenizer: Tokenizer, settings: ClassifierSettings, source: ClassifyInput, *, truncate: bool = False
) -> tuple[FittedInput, ...]:
    """Return each text or pair as tokens. ``truncate``: a text, or the second of a pair, may be cut at its end.

    Raises InvalidRequest that names the first input that does not fit (code ``context_length_exceeded``), and if all
    inputs together have too many tokens.
    """
    found = tuple(
        fit_texts(tokenizer, texts, settings.context_window, f"input.texts[{index}]", truncate=truncate)
        for index, texts in enumerate(source.texts)
    )
    check_total(num_tokens(found), "input.texts")
    return found


def prepare(request: ClassifyRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. A policy changes nothing in labels."""
    inputs = classify_inputs(model.tokenizer, model.settings, request.input, truncate=request.truncate)
    payload = ClassifyPayload(input=request.input, top_k=request.top_k, truncate=request.truncate)
    return Prepared(payload, num_tokens(inputs))


def check_length(request: ClassifyRequest, model: InputModel) -> ClassifyRequest:
    """Return the request; raise InvalidRequest if an input is longer than the context window."""
    classify_inputs(model.tokenizer, model.settings, request.input, truncate=request.truncate)
    return request


PART = TaskInputs(
    spec=CLASSIFY,
    prepare=prepare,
    cut_to_length=check_length,
    is_quick=lambda _request, _model: True,
    read_settings=settings_for,
    is_folder=is_classifier,
    folder_window=lambda files: read_classifier(files).context_window,
)
