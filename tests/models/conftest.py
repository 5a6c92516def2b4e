"""The demo model's folder, its runner, and the reference implementation of it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from headrace.models.catalog import fetch
from headrace.models.families.model_folder import small_files
from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.torch_runner import TorchRunner
from headrace.prompts.tokenizer import Tokenizer, load_tokenizer
from headrace.store.settings import Settings

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny products on several threads wait for each other's turn on a busy machine, a hundred times longer."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo model's folder, fetched once a checkout."""
    return fetch("smollm2", REPOSITORY / ".headrace" / "models")


@pytest.fixture(scope="session")
def smollm2_runner(smollm2: Path) -> TorchRunner:
    return runner_for(smollm2, Settings(device="cpu", dtype="float32", kv_pool_tokens=8192))


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: Path) -> Tokenizer:
    return load_tokenizer(small_files(smollm2))


@pytest.fixture(scope="session")
def smollm2_reference(smollm2: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
