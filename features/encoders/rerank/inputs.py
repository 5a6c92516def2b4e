"""Requests for relevance scores: each document becomes one pair with the query, as the tokenizer writes pairs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace.features.encoders.classifier_folder import (
    FAKE_WINDOW,
    Activation,
    ClassifierSettings,
    Head,
    head_of,
    num_labels,
)
from headrace.features.encoders.classifier_folder import read_classifier as read_settings
from headrace.features.encoders.fitted_inputs import FittedInput, fit_texts, num_tokens, too_long
from headrace.features.encoders.rerank.task import RERANK, RerankInput, RerankPayload, RerankRequest
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, ReadFile, TaskInputs
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.payloads.job_payload import PinnedPolicy

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

FAKE = ClassifierSettings(FAKE_WINDOW, ("LABEL_0",), Activation.SIGMOID)
"""Of the cross-encoder without weights."""


def is_cross_encoder(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of an encoder that makes one number of an input."""
    return head_of(config) is Head.SEQUENCE and num_labels(config) == 1


def settings_for(version: "ModelVersion", read_file: ReadFile) -> ClassifierSettings:
    """Return the settings of a registered cross-encoder."""
    return FAKE if version.is_fake else read_settings({"config.json": read_file(version.files["config.json"])})


def rerank_pairs(
    tokenizer: Tokenizer, settings: ClassifierSettings, source: RerankInput, *, truncate: bool = False
) -> tuple[FittedInput, ...]:
    """Return the pair of each document. ``truncate``: a document may be cut at its end, the query never.

    Raises InvalidRequest that names the first document with a pair over the model's context window (code
    ``context_length_exceeded``), or the query if it leaves no place for a document.
    """
    window = settings.context_window
    num_query = len(tokenizer.encode(source.query, add_special=False))
    if num_query >= window:
        raise too_long("input.query", f"{num_query}", window)
    return tuple(
        fit_texts(tokenizer, (source.query, document), window, f"input.documents[{index}]", truncate=truncate)
        for index, document in enumerate(source.documents)
    )


def prepare(request: RerankRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. A policy changes nothing in scores."""
    pairs = rerank_pairs(model.tokenizer, model.settings, request.input, truncate=request.truncate)
    # A worker of an older release reads a payload without ``truncate``.
    payload = RerankPayload(input=request.input, top_n=request.top_n, truncate=request.truncate or None)
    return Prepared(payload, num_tokens(pairs))


def check_length(request: RerankRequest, model: InputModel) -> RerankRequest:
    """Return the request; raise InvalidRequest if a pair is longer than the context window."""
    rerank_pairs(model.tokenizer, model.settings, request.input, truncate=request.truncate)
    return request


PART = TaskInputs(
    spec=RERANK,
    prepare=prepare,
    cut_to_length=check_length,
    is_quick=lambda _request, _model: True,
    read_settings=settings_for,
    is_folder=is_cross_encoder,
    folder_window=lambda files: read_settings(files).context_window,
)
