"""Requests for labels in words: the images and the sentences of the labels, for a model that embeds both."""

from headrace.features.encoders.embed.inputs import Embedder, EmbedTokens, text_tokens
from headrace.features.images.zero_shot.task import (
    IMAGE_ZERO_SHOT,
    ImageZeroShotInput,
    ImageZeroShotPayload,
    ImageZeroShotRequest,
)
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, TaskInputs, no_folder, no_settings
from headrace.prompts.tokenizer import Tokenizer
from headrace.prompts.vision.image_sources import check_images
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import PinnedPolicy


def check_model(embedder: Embedder) -> None:
    """Raise InvalidRequest unless the model embeds images and texts in one space."""
    if embedder.image_tokens is None or not embedder.has_texts:
        raise InvalidRequest(
            "this model does not embed images and texts in one space: ask a model such as CLIP", param="model"
        )


def label_tokens(tokenizer: Tokenizer, embedder: Embedder, source: ImageZeroShotInput) -> EmbedTokens:
    """Return the sentence of each label as tokens. Raises InvalidRequest for one over the context window."""
    found = [
        text_tokens(tokenizer, embedder, sentence, f"input.candidate_labels[{index}]", truncate=False)
        for index, sentence in enumerate(source.sentences)
    ]
    return EmbedTokens(tuple(ids for ids, _ in found), tuple(num_cut for _, num_cut in found))


def prepare(request: ImageZeroShotRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost. Raises InvalidRequest for an image or a label that cannot be used."""
    embedder: Embedder = model.settings
    check_model(embedder)
    labels = label_tokens(model.tokenizer, embedder, request.input)
    check_images(request.input.images)
    payload = ImageZeroShotPayload(input=request.input, top_k=request.top_k)
    return Prepared(payload, (embedder.image_tokens or 0) * len(request.input.images) + labels.num_tokens)


PART = TaskInputs(
    spec=IMAGE_ZERO_SHOT,
    prepare=prepare,
    cut_to_length=lambda request, _model: request,
    is_quick=lambda _request, _model: False,
    read_settings=no_settings,
    is_folder=no_folder,
)
