"""The work of the task ``rerank``: a relevance score for each document, by a cross-encoder."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.engine.runner import Encoder
from models.loading.load import checked_folder, with_encoder_faults
from models.runners.fake_encoder import FakeCrossEncoder
from prompts.tasks.rerank import CrossEncoderSettings, rerank_pairs, settings_for
from prompts.tasks.task_inputs import ReadFile
from prompts.tokenizer import Tokenizer, tokenizer_for
from store.payloads.job_payload import read_payload
from store.registry.models import ModelVersion
from store.settings import Settings
from store.tasks.rerank import RerankOutput, RerankPayload, RerankResult
from workers.tasks.encoding import EncodeJob, EncoderModel


@dataclass(frozen=True, slots=True)
class RerankModel(EncoderModel):
    """A cross-encoder with its tokenizer."""

    tokenizer: Tokenizer
    settings: CrossEncoderSettings

    @property
    def example(self) -> Mapping[str, Any]:
        """A query with two documents."""
        return {"input": {"query": "what turns a mill?", "documents": ["water", "a mill stands by the river"]}}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job's pairs as tokens. The options are the token type ids of each pair."""
        asked = read_payload(RerankPayload, payload)
        pairs = rerank_pairs(self.tokenizer, self.settings, asked.input)
        types = tuple(pair.type_ids for pair in pairs)
        return EncodeJob(tuple(pair.ids for pair in pairs), types, partial(_output, asked.top_n))


def load_rerank_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> RerankModel:
    """Load a cross-encoder."""
    tokenizer = tokenizer_for(version, read_file)
    encoder = with_encoder_faults(_load(version, settings), settings, tokenizer.decode)
    return RerankModel(version, encoder, tokenizer, settings_for(version, read_file))


def _load(version: ModelVersion, settings: Settings) -> Encoder:
    if version.is_fake:
        return FakeCrossEncoder(step_s=settings.fake_step_ms / 1000)
    folder = checked_folder(version)
    from models.runners.cross_encoder import cross_encoder_for  # noqa: PLC0415 - a worker of a fake has no torch

    return cross_encoder_for(folder, settings, dtype=version.dtype)


def _output(top_n: int | None, scores: Sequence[bytes]) -> dict[str, Any]:
    numbers: list[float] = [struct.unpack("<f", score)[0] for score in scores]
    best_first = sorted(range(len(numbers)), key=lambda index: -numbers[index])[:top_n]
    results = tuple(RerankResult(index=index, relevance_score=numbers[index]) for index in best_first)
    return RerankOutput(results=results).model_dump(mode="json")
