"""Requests for relevance scores: each document becomes one pair with the query, as the tokenizer writes pairs.

Also the settings in a cross-encoder's folder: the longest pair, and the function that makes a score of the model's
number. They are read as sentence-transformers' CrossEncoder reads them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from prompts.tasks.embed import is_encoder, num_positions
from prompts.tasks.task_inputs import InputModel, Prepared, ReadFile, TaskInputs
from prompts.tokenizer import Pair, Tokenizer
from store.errors import InvalidRequest, ModelLoadError
from store.payloads.job_payload import PinnedPolicy
from store.tasks.rerank import RERANK, RerankInput, RerankPayload, RerankRequest

if TYPE_CHECKING:
    from store.registry.models import ModelVersion

Files: TypeAlias = Mapping[str, bytes]

FAKE_WINDOW = 8192
"""The context window of the cross-encoder without weights."""


class Activation(StrEnum):
    """Makes a score of the model's number."""

    SIGMOID = "Sigmoid"
    IDENTITY = "Identity"


@dataclass(frozen=True, slots=True)
class CrossEncoderSettings:
    """The settings of a cross-encoder. ``context_window`` is in tokens of a pair."""

    context_window: int
    activation: Activation = Activation.SIGMOID


def is_cross_encoder(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of an encoder that makes one number of an input."""
    architecture = next(iter(config.get("architectures") or ()), "")
    num_labels = config.get("num_labels", len(config.get("id2label") or ()))
    return is_encoder(config) and str(architecture).endswith("ForSequenceClassification") and num_labels == 1


def read_settings(files: Files) -> CrossEncoderSettings:
    """Return the settings in a cross-encoder's folder. Raises ModelLoadError for one that cannot run."""
    try:
        config = json.loads(files["config.json"])
    except (KeyError, ValueError) as error:
        raise ModelLoadError(f"config.json cannot be read: {error}") from error
    return CrossEncoderSettings(num_positions(config), _activation(config))


def settings_for(version: "ModelVersion", read_file: ReadFile) -> CrossEncoderSettings:
    """Return the settings of a registered cross-encoder."""
    if version.is_fake:
        return CrossEncoderSettings(FAKE_WINDOW)
    return read_settings({"config.json": read_file(version.files["config.json"])})


def rerank_pairs(tokenizer: Tokenizer, settings: CrossEncoderSettings, source: RerankInput) -> tuple[Pair, ...]:
    """Return the pair of each document. Nothing is cut.

    Raises InvalidRequest that names the first document with a pair over the model's context window (code
    ``context_length_exceeded``), or the query if it leaves no place for a document.
    """
    longest = settings.context_window
    num_query = len(tokenizer.encode(source.query, add_special=False))
    if num_query >= longest:
        raise _too_long("input.query", f"{num_query}", longest)
    pairs = []
    for index, document in enumerate(source.documents):
        pair = tokenizer.encode_pair(source.query, document)
        if len(pair.ids) > longest:
            raise _too_long(f"input.documents[{index}]", f"{len(pair.ids)} with the query", longest)
        pairs.append(pair)
    return tuple(pairs)


def prepare(request: RerankRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. A policy changes nothing in scores."""
    pairs = rerank_pairs(model.tokenizer, model.settings, request.input)
    return Prepared(RerankPayload(input=request.input, top_n=request.top_n), sum(len(pair.ids) for pair in pairs))


def check_length(request: RerankRequest, model: InputModel) -> RerankRequest:
    """Return the request; raise InvalidRequest if a pair is longer than the context window."""
    rerank_pairs(model.tokenizer, model.settings, request.input)
    return request


def _too_long(param: str, length: str, longest: int) -> InvalidRequest:
    return InvalidRequest(
        f"this model's maximum context length is {longest} tokens, `{param}` has {length}: shorten it",
        code="context_length_exceeded",
        param=param,
    )


def _activation(config: Mapping[str, Any]) -> Activation:
    """Return the activation function that newer or older files name, the sigmoid if they name none."""
    newer = config.get("sentence_transformers")
    named = newer.get("activation_fn") if isinstance(newer, dict) else None
    name = named or config.get("sbert_ce_default_activation_function") or Activation.SIGMOID
    short = str(name).rpartition(".")[2]
    if short not in tuple(Activation):
        raise ModelLoadError(f"config.json: the activation function {name} cannot run here: Sigmoid and Identity can")
    return Activation(short)


RERANK_INPUTS = TaskInputs(
    spec=RERANK,
    prepare=prepare,
    cut_to_length=check_length,
    is_quick=lambda _request, _model: True,
    read_settings=settings_for,
    is_folder=is_cross_encoder,
    folder_window=lambda files: read_settings(files).context_window,
)
