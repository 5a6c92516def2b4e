"""Requests for predictions: each row is checked by the feature schema of the model, and counts as a token.

Also the ``config.json`` of a tabular model's folder: its features, its layers and its classes.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, FiniteFloat, StringConstraints, model_validator

from headrace.features.predict.feature_schema import FeatureSchema, encode_rows, read_config
from headrace.features.predict.task import EXPLAINED_COST, MAX_ROWS, PREDICT, PredictPayload, PredictRequest
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, ReadFile, TaskInputs
from headrace.store.payloads.job_payload import PinnedPolicy

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

MODEL_TYPE: Final = "headrace-tabular"
"""The ``model_type`` in the ``config.json`` of such a folder."""

MAX_CLASSES = 1000


class Activation(StrEnum):
    """The function between two layers."""

    RELU = "relu"
    SILU = "silu"
    TANH = "tanh"


class Objective(StrEnum):
    """What the model predicts: one of two classes, one of several, or a number."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


class DenseConfig(FeatureSchema):
    """A network over rows. ``hidden``: the widths of the layers before the last one; none make it linear."""

    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(max_length=16)] = ()
    activation: Activation = Activation.RELU


class TabularConfig(DenseConfig):
    """The ``config.json`` of a tabular model.

    ``threshold``: the probability from which the second of two classes is the label. A predicted number is
    ``target_mean + target_scale * output``.
    """

    model_type: Literal["headrace-tabular"]
    objective: Objective
    classes: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=100)], ...], Field(max_length=MAX_CLASSES)
    ] = ()
    threshold: float = Field(0.5, gt=0, lt=1)
    target_mean: FiniteFloat = 0.0
    target_scale: Annotated[FiniteFloat, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _has_its_classes(self) -> Self:
        num_classes = len(self.classes)
        wanted = {Objective.BINARY: num_classes == 2, Objective.REGRESSION: num_classes == 0}
        if not wanted.get(self.objective, num_classes > 1):
            raise ValueError(f"{num_classes} classes do not fit the objective {self.objective}")
        if len(set(self.classes)) != num_classes:
            raise ValueError("a class is listed twice")
        return self

    @property
    def num_outputs(self) -> int:
        """The outputs of the last layer."""
        return len(self.classes) if self.objective is Objective.MULTICLASS else 1


FAKE: Final = TabularConfig.model_validate(
    {
        "model_type": MODEL_TYPE,
        "objective": "binary",
        "classes": ["legitimate", "fraud"],
        "features": [
            {"name": "amount", "type": "number", "missing": "imputed"},
            {"name": "country", "type": "category", "categories": ["ch"], "other": "embedded", "dimensions": 1},
        ],
    }
)
"""Of the model without weights."""


def config_for(version: "ModelVersion", read_file: ReadFile) -> TabularConfig:
    """Return the configuration of a registered model."""
    return FAKE if version.is_fake else read_config(TabularConfig, read_file(version.files["config.json"]))


def prepare(request: PredictRequest, model: InputModel, _policy: PinnedPolicy | None) -> Prepared:
    """Return the payload and the cost, a token for each row and more with explanations. A policy changes no output."""
    encode_rows(model.settings, request.input.rows)
    cost = len(request.input.rows) * (EXPLAINED_COST if request.explain else 1)
    return Prepared(PredictPayload(input=request.input, explain=request.explain), cost)


def check_rows(request: PredictRequest, model: InputModel) -> PredictRequest:
    """Return the request; raise InvalidRequest if a row does not fit the model."""
    encode_rows(model.settings, request.input.rows)
    return request


def is_tabular(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of a tabular model."""
    return config.get("model_type") == MODEL_TYPE


def _most_rows(files: Mapping[str, bytes]) -> int:
    read_config(TabularConfig, files["config.json"])
    return MAX_ROWS


PART = TaskInputs(
    spec=PREDICT,
    prepare=prepare,
    cut_to_length=check_rows,
    is_quick=lambda _request, _model: True,
    read_settings=config_for,
    is_folder=is_tabular,
    folder_window=_most_rows,
    has_tokenizer=lambda _config: False,
)
