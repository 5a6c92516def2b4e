"""The models of the benchmark: their folders, and their registration on a running stack."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from benchmarks.engine.lora import make_adapter
from headrace.store.settings import child_environment

RANK = 8
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_TINY = {
    "vocab_size": 49_152,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True)
class Model:
    """A model of the benchmark. ``base``: of an adapter. ``task``: generate or embed."""

    name: str
    folder: str
    dtype: str = "auto"
    base: str | None = None
    task: str = "generate"


MODELS = (
    Model("smol-bfloat16", "smollm2", "bfloat16"),
    Model("smol-float32", "smollm2", "float32"),
    Model("minilm", "minilm", task="embed"),
    Model("tiny-llama", "tiny-llama", "float32"),
    Model("tiny-qwen3", "tiny-qwen3", "float32"),
)
ADAPTERS = (
    Model("tone-a", "adapter-0", base="smol-bfloat16"),
    Model("tone-b", "adapter-1", base="smol-bfloat16"),
    Model("tone-c", "adapter-2", base="tiny-llama"),
    Model("tone-d", "adapter-3", base="tiny-llama"),
)


def make_folders(into: Path, smollm2: Path, minilm: Path) -> None:
    """Write or link the folders of all models."""
    if (into / "adapter-3").exists():
        return
    into.mkdir(parents=True, exist_ok=True)
    for name, source in (("smollm2", smollm2), ("minilm", minilm)):
        shutil.copytree(source, into / name, copy_function=_link, dirs_exist_ok=True)
    torch.manual_seed(7)
    for name, model in (
        ("tiny-llama", LlamaForCausalLM(LlamaConfig(**_TINY))),
        ("tiny-qwen3", Qwen3ForCausalLM(Qwen3Config(**_TINY, head_dim=32))),
    ):
        model.save_pretrained(into / name)
        for file in _TOKENIZER:
            shutil.copy(smollm2 / file, into / name / file)
    for number, base in enumerate(("smollm2", "smollm2", "tiny-llama", "tiny-llama")):
        make_adapter(into / f"adapter-{number}", into / base, RANK, seed=number)


def _link(source: str, target: str) -> None:
    """Copy a file by a link, if both places are on one disk."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy(source, target)


def register_all(folders: Path, home: Path) -> None:
    """Register every model and adapter on the stack of this home folder."""
    for model in (*MODELS, *ADAPTERS):
        given = ["--base", model.base] if model.base else ["--dtype", model.dtype]
        argv = [sys.executable, "-m", "headrace.cli.main", "register", model.name, str(folders / model.folder), *given]
        subprocess.run(argv, check=True, env=child_environment({"HEADRACE_HOME": str(home)}), capture_output=True)


def wait_verified(client: httpx2.Client, tend: Callable[[], None], give_up_s: float = 500.0) -> dict[str, int]:
    """Wait until every model is verified; return the memory that each needed, in bytes."""
    give_up_at = time.monotonic() + give_up_s
    while True:
        tend()
        versions = client.get("/v1/model_versions").json()["data"]
        if all(one["state"] == "ready" for one in versions):
            found = {one["model"]: one["verification"] for one in versions}
            return {model.name: found[model.name]["memory_bytes"] for model in MODELS}
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"not verified: {json.dumps(versions)[:2000]}")
        time.sleep(1)
