"""Who takes part: how each is installed, which files it needs and how its process is started. Measures nothing."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.engine import files
from benchmarks.venvs import environment

Say = Callable[[str], None]

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Contestant:
    """One row of the tables. ``argv`` prepares the process and returns the command of its process.

    ``slots`` describes its own limit of requests that run together, if it ignores ours; ``most`` is
    how many requests of a workload it is given, evenly spread, if computing all would take too long. ``tells_tokens``:
    its answers have token ids, so that they can be compared with the reference.
    """

    name: str
    what: str
    dtype: str
    argv: Callable[[Path, Say], Sequence[str | Path]]
    slots: int | None = None
    most: int | None = None
    tells_tokens: bool = True


def _ours(dtype: str, *flags: str) -> Callable[[Path, Say], Sequence[str | Path]]:
    return lambda model, say: [sys.executable, "-m", "benchmarks.engine.peers.on_headrace", model, dtype, *flags]


def _path(dtype: str) -> Callable[[Path, Say], Sequence[str | Path]]:
    return lambda model, say: [sys.executable, "-m", "benchmarks.engine.peers.on_path", model.name, dtype]


def _same(script: str, dtype: str) -> Callable[[Path, Say], Sequence[str | Path]]:
    """A peer that Headrace depends on anyway: it runs from this environment."""
    return lambda model, say: [sys.executable, PEERS / script, model, dtype]


def _vllm(model: Path, say: Say) -> Sequence[str | Path]:
    return [environment("vllm", say) / "python", PEERS / "on_vllm.py", model, "bfloat16"]


def _openvino(weights: str, model: Path, say: Say) -> Sequence[str | Path]:
    folder = files.openvino(model, weights, say)
    return [environment("openvino", say) / "python", PEERS / "on_openvino.py", folder, "bf16"]


def _llama_server(kind: str, model: Path, say: Say) -> Sequence[str | Path]:
    gguf = files.gguf(model.name, kind, say)
    return [environment("llama", say) / "python", PEERS / "on_llama_server.py", gguf]


_OURS = Contestant("headrace-bf16", "Headrace", "bf16", _ours("bfloat16"))

CONTESTANTS = (
    _OURS,
    replace(
        _OURS, name="plain-bf16", what="Headrace without prompt lookup", argv=_ours("bfloat16", "--no-speculation")
    ),
    replace(_OURS, name="headrace-int8", dtype="int8, groups of 64", argv=_ours("int8")),
    replace(_OURS, name="torch-bf16", what="Headrace without compiled kernels", argv=_ours("bfloat16", "--no-native")),
    replace(_OURS, name="headrace-fp32", dtype="fp32", argv=_ours("float32")),
    replace(
        _OURS, name="path-bf16", what="Headrace, HTTP to stored result", argv=_path("bfloat16"), tells_tokens=False
    ),
    Contestant("vllm-bf16", "vLLM on CPU, compiled", "bf16", _vllm),
    Contestant("openvino-bf16", "OpenVINO GenAI", "bf16, KV u8", partial(_openvino, "fp16"), slots=64),
    Contestant("openvino-int8", "OpenVINO GenAI", "int8 weights, KV u8", partial(_openvino, "int8"), slots=64),
    Contestant("llama-server-bf16", "llama.cpp server, HTTP", "bf16, KV fp16", partial(_llama_server, "BF16")),
    Contestant("llama-server-q8", "llama.cpp server, HTTP", "Q8_0, KV fp16", partial(_llama_server, "Q8_0")),
    Contestant(
        "transformers-bf16", "transformers continuous batching", "bf16", _same("on_transformers.py", "bfloat16")
    ),
    Contestant("generate-bf16", "transformers generate, one by one", "bf16", _same("on_generate.py", "bfloat16"), 1, 8),
)
REFERENCE = Contestant("generate-fp32", "transformers generate", "fp32", _same("on_generate.py", "float32"), slots=1)
"""The contestant with the reference's greedy tokens."""
