"""The runner of a GPU on CPU tensors: a slow kernel, memory by agreement, and graphs that compute again."""

from collections.abc import Callable
from pathlib import Path

import torch

from headrace.models.families.model_folder import read_json, small_files
from headrace.models.families.registry import read_architecture
from headrace.models.loading.gpu_load import GpuCalls, load
from headrace.models.runners.device_runner import DeviceRunner
from headrace.models.tensors.varlen_attention import AttentionShape, VarlenAttention, find_varlen_attention
from headrace.prompts.grammar import Grammars
from headrace.prompts.tokenizer import eos_token_ids
from headrace.store.settings import Settings
from tests.models.varlen import varlen_reference

CPU = torch.device("cpu")


def record(compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Record as CUDA graphs do: the result is a tensor that each replay overwrites."""
    result = compute().clone()

    def replay() -> None:
        result.copy_(compute())

    return replay, result


def slow_tables(shape: AttentionShape) -> VarlenAttention | None:
    return find_varlen_attention(shape, lambda: iter([("slow", varlen_reference)]))


def device_runner(folder: Path, settings: Settings, *, tables: bool, free: int = 1 << 30) -> DeviceRunner:
    """Return a DeviceRunner in float32. ``tables``: attention follows block tables, and decode passes are recorded."""
    attention = slow_tables if tables else lambda shape: None
    calls = GpuCalls(memory=lambda device: (free, 10 * free), attention=attention, record=lambda: record)
    files = small_files(folder)
    ends = eos_token_ids(files)
    architecture = read_architecture(folder, read_json(folder / "config.json"))
    grammars = None
    if "tokenizer.json" in files:
        vocab_size = architecture.config.vocab_size
        grammars = Grammars(files["tokenizer.json"], vocab_size=vocab_size, eos_token_ids=ends)
    return load(folder, architecture, settings, torch.float32, CPU, ends=ends, grammars=grammars, gpu=calls)
