"""The work of the task ``classify``: the scores of the labels for each text or pair, by a classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.features.encoders.classifier_folder import ClassifierSettings
from headrace.features.encoders.classify.inputs import classify_inputs, settings_for
from headrace.features.encoders.classify.task import CLASSIFY, ClassifyOutput, ClassifyPayload, LabelScore
from headrace.features.encoders.encode_jobs import job_of, numbers_of
from headrace.features.encoders.fitted_inputs import cuts_of
from headrace.features.encoders.loading import load_classifier
from headrace.models.loading.load import with_encoder_faults
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.prompts.tokenizer import Tokenizer, tokenizer_for
from headrace.store.payloads.job_payload import read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel
from headrace.workers.tasks.task_model import ModelPart


@dataclass(frozen=True, slots=True)
class ClassifyModel(EncoderModel):
    """A classifier with its tokenizer."""

    tokenizer: Tokenizer
    settings: ClassifierSettings

    @property
    def example(self) -> Mapping[str, Any]:
        """A text and a pair."""
        return {"input": {"texts": ["water runs downhill", ["what turns a mill?", "water"]]}}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job's inputs as tokens. The options are the token type ids of each input."""
        asked = read_payload(ClassifyPayload, payload)
        inputs = classify_inputs(self.tokenizer, self.settings, asked.input, truncate=asked.truncate)
        labels = self.settings.labels

        def output(vectors: Sequence[bytes]) -> dict[str, Any]:
            best = tuple(best_labels(labels, numbers_of(vector), asked.top_k) for vector in vectors)
            cuts = cuts_of([one.num_cut for one in inputs])
            made = ClassifyOutput(labels=labels, classifications=best, truncated=cuts)
            return made.model_dump(mode="json", exclude_none=True)

        return job_of(inputs, output)


def load_classify_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> ClassifyModel:
    """Load a classifier."""
    tokenizer, found = tokenizer_for(version, read_file), settings_for(version, read_file)
    encoder = with_encoder_faults(load_classifier(version, settings, found), settings, tokenizer.decode)
    return ClassifyModel(version, encoder, tokenizer, found)


def best_labels(labels: Sequence[str], scores: Sequence[float], top_k: int | None) -> tuple[LabelScore, ...]:
    """Return the labels by falling score; of equal scores the model's first label is first."""
    order = sorted(range(len(labels)), key=lambda index: -scores[index])[:top_k]
    return tuple(LabelScore(label=labels[index], score=scores[index]) for index in order)


PART = ModelPart(CLASSIFY, load_classify_model)
