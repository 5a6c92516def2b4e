"""A model folder for the fake servers, and the Python of an environment that has a fake vLLM.

``python -m tests.models.external.served FOLDER`` makes both, FOLDER/bytes and FOLDER/python, for a stack whose server
starts in a second: ``headrace up --engine vllm --engine-python FOLDER/python --model FOLDER/bytes``.
"""

import json
import sys
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from headrace.prompts.tokenizer import byte_of_letter
from tests.models.external import fake_vllm_program
from tests.models.external.fake_model import EOS
from tests.processes import ROOT


def bytes_folder(folder: Path) -> Path:
    """Make a model folder: one token for each byte, and one for the end. The weights are no weights."""
    folder.mkdir()
    tokenizer = tokenizers.Tokenizer(models.BPE(dict(byte_of_letter()) | {"</s>": EOS}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": EOS, "max_position_embeddings": 8192}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def fake_engine_python(folder: Path, step_s: float = 0.005, more: str = "") -> Path:
    """Make a program that starts ``fake_vllm_program``, whatever module it is asked for. See there for ``started``.

    ``more``: environment variables that it reads.
    """
    program = folder / "python"
    environment = f"FAKE_VLLM_STARTED={folder / 'started'} FAKE_VLLM_STEP_S={step_s} PYTHONPATH={ROOT} {more}"
    program.write_text(f'#!/bin/sh\n{environment} exec {sys.executable} {fake_vllm_program.__file__} "$@"\n')
    program.chmod(0o755)
    return program


if __name__ == "__main__":
    made = Path(sys.argv[1]).absolute()
    made.mkdir(parents=True, exist_ok=True)
    bytes_folder(made / "bytes")
    fake_engine_python(made, step_s=0.1)
