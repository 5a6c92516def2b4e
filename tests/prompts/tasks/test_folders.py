"""What the registry stores of a model's folder for each task, and which tasks have a tokenizer."""

from typing import Any

import pytest
from pydantic import BaseModel

from headrace.tasks import Task
from prompts.tasks.own_task import num_tokens_of, own_inputs
from prompts.tasks.registry import TASK_INPUTS
from store.errors import InvalidRequest, ModelLoadError
from store.payloads.job_payload import PinnedPolicy
from store.tasks.own_task import spec_of

SENTENCE_FILES = (
    "preprocessor_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "2_Dense/config.json",
    "3_Dense/config.json",
)


def test_the_files_of_each_task_are_stored() -> None:
    assert {name: one.folder_files for name, one in TASK_INPUTS.items() if one.folder_files} == {
        "recommend": ("items.jsonl",),
        "transcribe": ("preprocessor_config.json",),
        "image_classify": ("preprocessor_config.json",),
        "embed": SENTENCE_FILES,
    }
    assert {name: one.folder_weights for name, one in TASK_INPUTS.items() if one.folder_weights} == {
        "embed": ("2_Dense/model.safetensors", "3_Dense/model.safetensors")
    }


def test_tasks_of_texts_have_a_tokenizer_and_their_own_window() -> None:
    ours = {name: one for name, one in TASK_INPUTS.items() if not one.has_any_files}
    without = {name for name, one in ours.items() if not one.has_tokenizer({"model_type": "bert"})}
    assert without == {"predict", "recommend", "image_classify"}
    assert not ours["embed"].has_tokenizer({"model_type": "vit"})
    assert ours["embed"].has_tokenizer({"model_type": "clip"})
    assert {name for name, one in ours.items() if one.folder_window is None} == {"image_zero_shot", "score", "generate"}
    assert {name for name, one in ours.items() if one.is_folder({"model_type": "?"})} == {"generate"}


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
        ({}, "items.jsonl is missing: a recommender needs it"),
        ({"items": b"x" * (64 * 2**20 + 1)}, "items.jsonl has over 64 MiB: leave attributes out"),
        ({"items": b""}, "items.jsonl has no line"),
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
            "the input costs 4 tokens, and the task lengths takes at most 3",
            "context_length_exceeded",
            "input",
        )
