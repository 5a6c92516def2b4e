"""The work of the task ``token_classify``: the entities in each text, by a token classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.features.encoders.classifier_folder import ClassifierSettings
from headrace.features.encoders.encode_jobs import job_of, numbers_of
from headrace.features.encoders.fitted_inputs import FittedInput, cuts_of
from headrace.features.encoders.loading import load_classifier
from headrace.features.encoders.token_classify.entities import entities_of
from headrace.features.encoders.token_classify.inputs import settings_for, token_classify_inputs
from headrace.features.encoders.token_classify.task import (
    TOKEN_CLASSIFY,
    Aggregation,
    Entity,
    TokenClassifyOutput,
    TokenClassifyPayload,
)
from headrace.features.encoders.token_pieces import TokenPieces, pieces_for
from headrace.models.loading.load import with_encoder_faults
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.prompts.tokenizer import Tokenizer, tokenizer_for
from headrace.store.payloads.job_payload import read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel
from headrace.workers.tasks.task_model import ModelPart


@dataclass(frozen=True, slots=True)
class TokenClassifyModel(EncoderModel):
    """A token classifier with its tokenizer and the spelling of its tokens."""

    tokenizer: Tokenizer
    pieces: TokenPieces
    settings: ClassifierSettings

    @property
    def example(self) -> Mapping[str, Any]:
        """A text."""
        return {"input": {"texts": ["Ann lives by the mill"]}}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job's texts as tokens. The options are the token type ids of each text."""
        asked = read_payload(TokenClassifyPayload, payload)
        inputs = token_classify_inputs(self.tokenizer, self.settings, asked.input, truncate=asked.truncate)

        def output(vectors: Sequence[bytes]) -> dict[str, Any]:
            found = tuple(self._entities(*each, asked) for each in zip(asked.input.texts, inputs, vectors, strict=True))
            made = TokenClassifyOutput(entities=found, truncated=cuts_of([one.num_cut for one in inputs]))
            return made.model_dump(mode="json", exclude_none=True)

        return job_of(inputs, output)

    def _entities(
        self, text: str, fitted: FittedInput, vector: bytes, asked: TokenClassifyPayload
    ) -> tuple[Entity, ...]:
        how = Aggregation(asked.aggregation_strategy)
        found = entities_of(text, fitted.encoded, numbers_of(vector), self.settings.labels, self.pieces, how)
        return tuple(entity for entity in found if entity.label not in asked.ignore_labels)


def load_token_classify_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> TokenClassifyModel:
    """Load a token classifier."""
    tokenizer, found = tokenizer_for(version, read_file), settings_for(version, read_file)
    encoder = with_encoder_faults(load_classifier(version, settings, found), settings, tokenizer.decode)
    return TokenClassifyModel(version, encoder, tokenizer, pieces_for(version, read_file), found)


PART = ModelPart(TOKEN_CLASSIFY, load_token_classify_model)
