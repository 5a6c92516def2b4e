"""What the registry stores of a model's folder for each task, and which tasks have a tokenizer."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from headrace.features.encoders.classifier_folder import Activation, ClassifierSettings, Head
from headrace.features.encoders.classify import inputs as classify
from headrace.features.encoders.embed import inputs as embed
from headrace.features.encoders.embed.inputs import Embedder
from headrace.features.encoders.image_folder import ImageClassifierSettings
from headrace.features.encoders.token_classify import inputs as token_classify
from headrace.features.images.classify import inputs as image_classify
from headrace.prompts.tasks.own_task import num_tokens_of, own_inputs
from headrace.prompts.tasks.registry import TASK_INPUTS
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.registry.models import ModelVersion
from headrace.store.tasks.own_task import spec_of
from headrace.store.tasks.registry import TASKS
from headrace.tasks import Task
from tests.prompts.tasks.test_prepared import Model
from tests.refusals import Naming

PIPELINE_FILES = (
    "model_index.json",
    "generation_defaults.json",
    "vae/config.json",
    "unet/config.json",
    "transformer/config.json",
)
SENTENCE_FILES = (
    "preprocessor_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "2_Dense/config.json",
    "3_Dense/config.json",
)


@pytest.mark.whole
def test_the_files_of_each_task_are_stored() -> None:
    assert {name: one.folder_files for name, one in TASK_INPUTS.items() if one.folder_files} == {
        "recommend": ("items.jsonl",),
        "transcribe": ("preprocessor_config.json",),
        "image_classify": ("preprocessor_config.json",),
        "image_generate": PIPELINE_FILES,
        "video_generate": (*PIPELINE_FILES, "motion_adapter/config.json"),
        "embed": SENTENCE_FILES,
    }
    assert {name: one.folder_weights for name, one in TASK_INPUTS.items() if one.folder_weights} == {
        "embed": ("2_Dense/model.safetensors", "3_Dense/model.safetensors")
    }


@pytest.mark.whole
def test_tasks_of_texts_have_a_tokenizer_and_their_own_window() -> None:
    ours = {name: one for name, one in TASK_INPUTS.items() if not one.has_any_files}
    without = {name for name, one in ours.items() if not one.has_tokenizer({"model_type": "bert"})}
    assert without == {"predict", "recommend", "image_classify"}
    assert not ours["embed"].has_tokenizer({"model_type": "vit"})
    assert ours["embed"].has_tokenizer({"model_type": "clip"})
    assert {name for name, one in ours.items() if one.folder_window is None} == {
        "image_zero_shot",
        "image_edit",
        "score",
        "generate",
    }
    assert {name for name, one in ours.items() if one.is_folder({"model_type": "?"})} == {"generate"}


@pytest.mark.uses("predict", "recommend")
def test_the_window_of_a_folder_is_that_of_its_task() -> None:
    def window(task: str, config: str, **others: bytes) -> int:
        read = TASK_INPUTS[task].folder_window
        assert read is not None
        return read({"config.json": config.encode(), **{f"{name}.jsonl": one for name, one in others.items()}})

    tabular = (
        '{"model_type": "headrace-tabular", "objective": "regression", "features": [{"name": "a", "type": "number"}]}'
    )
    assert window("predict", tabular) == 1000
    recommender = '{"model_type": "headrace-recommender", "dimensions": 2}'
    assert window("recommend", recommender, items=b'{"id": "a"}') == 1000
    for more, said in (
        ({}, "items.jsonl is missing"),
        ({"items": b"x" * (64 * 2**20 + 1)}, "64 MiB"),
        ({"items": b""}, "no line"),
    ):
        with pytest.raises(ModelLoadError, match=said):
            window("recommend", recommender, **more)


class _Text(BaseModel):
    text: str


def test_an_own_task_counts_its_input_within_its_bound() -> None:
    task = Task("lengths", _Text, _Text, "a.b:c", {"text": "x"}, count_tokens=lambda one: len(one.text), most_tokens=3)
    spec = spec_of(task)
    inputs = own_inputs(spec)
    unused: Any = None
    policy = PinnedPolicy(model="p", version=2)
    request = spec.request.model_validate({"task": "lengths", "model": "m", "input": {"text": "abc"}})
    prepared = inputs.prepare(request, unused, policy)
    assert (prepared.num_tokens, prepared.max_tokens) == (3, 0)
    assert prepared.payload.model_dump() == {"input": {"text": "abc"}, "policy": policy.model_dump()}
    assert inputs.cut_to_length(request, unused) is request
    assert inputs.has_any_files
    assert not inputs.is_folder({})
    assert num_tokens_of(spec, _Text(text="")) == 1
    long = spec.request.model_validate({"task": "lengths", "model": "m", "input": {"text": "abcd"}})
    for refuse in (lambda: inputs.prepare(long, unused, None), lambda: inputs.cut_to_length(long, unused)):
        with pytest.raises(InvalidRequest) as refused:
            refuse()
        assert (refused.value.message, refused.value.code, refused.value.param) == (
            Naming(" 4 tokens", "lengths", " 3"),
            "context_length_exceeded",
            "input",
        )


BERT = {
    "model_type": "bert",
    "hidden_size": 4,
    "max_position_embeddings": 9,
    "num_labels": 1,
    "architectures": ["BertForSequenceClassification"],
}
VIT = {"model_type": "vit", "hidden_size": 4, "patch_size": 14, "architectures": ["ViTForImageClassification"]}
STORED: dict[str, Any] = {
    "config.json": BERT,
    "sentence_bert_config.json": {"max_seq_length": 7},
    "preprocessor_config.json": {"size": 28},
}


def read_settings(task: str, runner: str, beside: Mapping[str, Any] = STORED, **config: Any) -> Any:
    """The settings of a registered version with this configuration and files beside it, by their digests."""
    contents = {**beside, "config.json": config}
    stored = {f"digest of {name}": json.dumps(content).encode() for name, content in contents.items()}
    files = {name: f"digest of {name}" for name in (*contents, "model.safetensors")}
    version = ModelVersion("m", 1, task, runner, "", "", "auto", 64, files, datetime.now(UTC), None)
    return TASK_INPUTS[task].read_settings(version, stored.__getitem__)


def test_the_settings_of_a_version_are_those_of_its_stored_files() -> None:
    tags = BERT | {"architectures": ["BertForTokenClassification"]}
    found = {
        "rerank": read_settings("rerank", "x", **BERT),
        "classify": read_settings("classify", "x", **BERT),
        "token_classify": read_settings("token_classify", "x", **tags),
        "embed": read_settings("embed", "x", **BERT),
        "image_classify": read_settings("image_classify", "x", **VIT),
    }
    one = ("LABEL_0",)
    assert found == {
        "rerank": ClassifierSettings(9, one, Activation.SIGMOID),
        "classify": ClassifierSettings(9, one, Activation.SIGMOID),
        "token_classify": ClassifierSettings(9, one, Activation.SOFTMAX, Head.TOKENS),
        "embed": Embedder(7, 4),
        "image_classify": ImageClassifierSettings(5, ("LABEL_0", "LABEL_1"), Activation.SOFTMAX),
    }
    fakes = (classify.FAKE, token_classify.FAKE, embed.FAKE, image_classify.FAKE)
    tasks = ("classify", "token_classify", "embed", "image_classify")
    assert tuple(read_settings(task, "fake") for task in tasks) == fakes
    assert read_settings("score", "fake") is None


@pytest.mark.parametrize(
    ("task", "given", "param"),
    [
        ("classify", {"texts": ["abcdefg"]}, "input.texts[0]"),
        ("token_classify", {"texts": ["a", "abcdefg"]}, "input.texts[1]"),
        ("rerank", {"query": "abc", "documents": ["defg"]}, "input.documents[0]"),
        ("score", {"text_1": ["abc"], "text_2": ["defg"]}, "input.text_2[0]"),
    ],
)
def test_what_is_too_long_is_refused_before_a_policy_reads_it(task: str, given: dict[str, Any], param: str) -> None:
    model = Model(replace(classify.FAKE, context_window=6))
    request = TypeAdapter(TASKS[task].request).validate_python({"task": task, "model": "m", "input": given})
    with pytest.raises(InvalidRequest) as refused:
        TASK_INPUTS[task].cut_to_length(request, model)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", param)
    may_cut = request.model_copy(update={"truncate": True})
    assert TASK_INPUTS[task].cut_to_length(may_cut, model) is may_cut
    assert TASK_INPUTS[task].is_quick(request, model)
