"""The work of the task ``rerank``: a relevance score for each document, by a cross-encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from headrace.features.encoders.classifier_folder import ClassifierSettings
from headrace.features.encoders.encode_jobs import job_of, numbers_of
from headrace.features.encoders.fitted_inputs import cuts_of
from headrace.features.encoders.loading import load_classifier
from headrace.features.encoders.rerank.inputs import rerank_pairs, settings_for
from headrace.features.encoders.rerank.task import RERANK, RerankOutput, RerankPayload, RerankResult
from headrace.models.loading.load import with_encoder_faults
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.prompts.tokenizer import Tokenizer, tokenizer_for
from headrace.store.payloads.job_payload import read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel
from headrace.workers.tasks.task_model import ModelPart


@dataclass(frozen=True, slots=True)
class RerankModel(EncoderModel):
    """A cross-encoder with its tokenizer."""

    tokenizer: Tokenizer
    settings: ClassifierSettings

    @property
    def example(self) -> Mapping[str, Any]:
        """A query with two documents."""
        return {"input": {"query": "what turns a mill?", "documents": ["water", "a mill stands by the river"]}}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job's pairs as tokens."""
        asked = read_payload(RerankPayload, payload)
        pairs = rerank_pairs(self.tokenizer, self.settings, asked.input, truncate=bool(asked.truncate))
        return job_of(pairs, partial(_output, asked.top_n, [pair.num_cut for pair in pairs]))


def load_rerank_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> RerankModel:
    """Load a cross-encoder."""
    tokenizer, found = tokenizer_for(version, read_file), settings_for(version, read_file)
    encoder = with_encoder_faults(load_classifier(version, settings, found), settings, tokenizer.decode)
    return RerankModel(version, encoder, tokenizer, found)


def _output(top_n: int | None, nums_cut: Sequence[int], scores: Sequence[bytes]) -> dict[str, Any]:
    numbers = [numbers_of(score)[0] for score in scores]
    best_first = sorted(range(len(numbers)), key=lambda index: -numbers[index])[:top_n]
    results = tuple(RerankResult(index=index, relevance_score=numbers[index]) for index in best_first)
    return RerankOutput(results=results, truncated=cuts_of(nums_cut)).model_dump(mode="json", exclude_none=True)


PART = ModelPart(RERANK, load_rerank_model)
