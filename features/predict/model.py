"""The work of the task ``predict``: a prediction for each row, by a tabular model."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from headrace.features.predict.fake_tabular import FakeTabular
from headrace.features.predict.feature_schema import encode_rows
from headrace.features.predict.inputs import Objective, TabularConfig, config_for
from headrace.features.predict.task import (
    EXPLAINED_COST,
    PREDICT,
    Explanation,
    Prediction,
    PredictOutput,
    PredictPayload,
)
from headrace.models.engine.runner import Encoder
from headrace.models.loading.load import checked_folder, with_encoder_faults
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.payloads.job_payload import read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel
from headrace.workers.tasks.task_model import ModelPart


@dataclass(frozen=True, slots=True)
class PredictModel(EncoderModel):
    """A tabular model with its configuration."""

    config: TabularConfig

    @property
    def example(self) -> Mapping[str, Any]:
        """A typical row, with its explanation."""
        return {"input": {"rows": [self.config.example]}, "explain": True}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job's rows. Each input is the number of a row, as often as it costs; the options are the rows."""
        asked = read_payload(PredictPayload, payload)
        rows = encode_rows(self.config, asked.input.rows, explain=asked.explain)
        cost = EXPLAINED_COST if asked.explain else 1
        inputs = tuple((number,) * cost for number in range(len(rows.numbers)))
        return EncodeJob(inputs, rows, partial(_output, self.config))


def load_predict_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> PredictModel:
    """Load a tabular model."""
    encoder = with_encoder_faults(_load(version, settings), settings, lambda _row: "")
    return PredictModel(version, encoder, config_for(version, read_file))


def _load(version: ModelVersion, settings: Settings) -> Encoder:
    if version.is_fake:
        return FakeTabular(step_s=settings.fake_step_ms / 1000)
    folder = checked_folder(version)
    from headrace.features.predict.torch_tabular import tabular_for  # noqa: PLC0415 - a worker of a fake has no torch

    return tabular_for(folder, settings, dtype=version.dtype)


def _output(config: TabularConfig, vectors: Sequence[bytes]) -> dict[str, Any]:
    predictions = tuple(_prediction(config, struct.unpack(f"<{len(one) // 4}f", one)) for one in vectors)
    return PredictOutput(predictions=predictions).model_dump(mode="json", exclude_none=True)


def _prediction(config: TabularConfig, vector: Sequence[float]) -> Prediction:
    outputs, explained = vector[: config.num_outputs], vector[config.num_outputs :]
    explanation = None
    if explained:
        *contributions, baseline, error = explained
        names = (feature.name for feature in config.features)
        by_feature = dict(zip(names, contributions, strict=True))
        explanation = Explanation(baseline=baseline, contributions=by_feature, convergence_delta=error)
    if config.objective is Objective.REGRESSION:
        return Prediction(score=outputs[0], explanation=explanation)
    if config.objective is Objective.BINARY:
        (score,) = outputs
        chances: Sequence[float] = (1 - score, score)
        label = config.classes[score >= config.threshold]
    else:
        chances, score = outputs, max(outputs)
        label = config.classes[outputs.index(score)]
    probabilities = dict(zip(config.classes, chances, strict=True))
    return Prediction(score=score, label=label, probabilities=probabilities, explanation=explanation)


PART = ModelPart(PREDICT, load_predict_model)
