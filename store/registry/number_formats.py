"""The number formats of Headrace's own engine. ``models.tensors.precision`` computes in them."""

import json
from collections.abc import Mapping
from typing import Final, Literal

from headrace.store.errors import InvalidRequest
from headrace.store.tasks.task_spec import TaskSpec

NumberFormat = Literal["float32", "bfloat16", "float16", "int8"]

FORMATS: Final[Mapping[str, str]] = {
    "float32": "the reference: the answers of transformers, token for token",
    "bfloat16": "half of the memory; the usual format",
    "float16": "half of the memory, for GPUs; a CPU computes it without the kernels",
    "int8": "a quarter of the memory of the linear layers, on a CPU, for models that generate text",
}
"""What each number format is good for."""

INT8_MODEL_TYPES: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""The ``model_type`` of the models that run in int8: those of the Llama family."""


def check_format(name: str, spec: TaskSpec, config_json: bytes) -> None:
    """Raise InvalidRequest if a model cannot run in a number format. ``config_json``: the file of this name."""
    if name != "int8":
        return
    if not spec.has_sampling:
        raise InvalidRequest("int8 is for models that generate text: use float32 or bfloat16", param="dtype")
    model_type = json.loads(config_json).get("model_type")
    if model_type not in INT8_MODEL_TYPES:
        known = ", ".join(sorted(INT8_MODEL_TYPES))
        raise InvalidRequest(f"int8 is for {known}, and the model is {model_type}: use bfloat16", param="dtype")
