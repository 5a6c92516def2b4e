"""The folder of an encoder with a classification head: its labels, and what makes scores of the model's numbers.

The scores are those of transformers' pipelines. For a head of one number they are those of sentence-transformers'
CrossEncoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from headrace.features.encoders.encoder_folder import is_encoder, num_positions
from headrace.prompts.folder_json import json_object
from headrace.store.errors import ModelLoadError
from headrace.store.tasks.own_task import OWN_TASK_ADVICE

Files: TypeAlias = Mapping[str, bytes]

FAKE_WINDOW = 8192
"""The context window of the classifiers without weights."""


class Head(StrEnum):
    """The end of the names of transformers' classes, by what is classified."""

    SEQUENCE = "ForSequenceClassification"
    TOKENS = "ForTokenClassification"


class Activation(StrEnum):
    """Makes scores of the model's numbers."""

    SIGMOID = "Sigmoid"
    SOFTMAX = "Softmax"
    IDENTITY = "Identity"


_OF_PROBLEM = {
    "regression": Activation.IDENTITY,
    "multi_label_classification": Activation.SIGMOID,
    "single_label_classification": Activation.SOFTMAX,
}


@dataclass(frozen=True, slots=True)
class ClassifierSettings:
    """The settings of a classifier. ``context_window`` is in tokens. ``labels`` are in the model's order."""

    context_window: int
    labels: tuple[str, ...]
    activation: Activation
    head: Head = Head.SEQUENCE


def head_of(config: Mapping[str, Any]) -> Head | None:
    """Return the classification head of an encoder by its ``config.json``; None if it has none that runs here."""
    name = str(next(iter(config.get("architectures") or ()), ""))
    return next((head for head in Head if name.endswith(head)), None) if is_encoder(config) else None


def num_labels(config: Mapping[str, Any]) -> int:
    """Return the number of labels; as in transformers it is 2 where the configuration says nothing."""
    named = config.get("id2label")
    return int(config.get("num_labels") or (len(named) if named else 2))


def read_classifier(files: Files) -> ClassifierSettings:
    """Return the settings in a classifier's folder. Raises ModelLoadError for one that cannot run."""
    config = json_object(files, "config.json")
    head = head_of(config)
    if head is None:
        raise ModelLoadError("config.json: this is no encoder with a classification head")
    return ClassifierSettings(num_positions(config), _labels(config), _activation(config, head), head)


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the labels in the model's order."""
    named = config.get("id2label") or {}
    return tuple(str(named.get(str(index), f"LABEL_{index}")) for index in range(num_labels(config)))


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    labels = labels_of(config)
    if len(set(labels)) < len(labels):
        raise ModelLoadError("config.json: two labels in id2label have the same name: give each its own")
    return labels


def _activation(config: Mapping[str, Any], head: Head) -> Activation:
    if head is Head.TOKENS:
        return Activation.SOFTMAX
    if num_labels(config) == 1:
        return _of_cross_encoder(config)
    problem = config.get("problem_type") or "single_label_classification"
    if problem not in _OF_PROBLEM:
        raise ModelLoadError(f"config.json: problem_type must be {', '.join(_OF_PROBLEM)}, not {problem!r}")
    return _OF_PROBLEM[problem]


def _of_cross_encoder(config: Mapping[str, Any]) -> Activation:
    """Return the activation function that newer or older files name, the sigmoid if they name none."""
    newer = config.get("sentence_transformers")
    named = newer.get("activation_fn") if isinstance(newer, dict) else None
    name = named or config.get("sbert_ce_default_activation_function") or Activation.SIGMOID
    short = str(name).rpartition(".")[2]
    if short not in (Activation.SIGMOID, Activation.IDENTITY):
        raise ModelLoadError(
            f"config.json: the activation function {name} cannot run here: Sigmoid and Identity can; {OWN_TASK_ADVICE}"
        )
    return Activation(short)
