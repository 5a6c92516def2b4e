"""Which module computes an architecture."""

import json
from pathlib import Path

import pytest

from headrace.models.families.model_config import UnsupportedArchitecture
from headrace.models.families.registry import FALLBACK, FAMILIES, family_module, read_architecture
from headrace.store.errors import ModelLoadError
from tests.models.families.test_llama import LLAMA
from tests.refusals import Naming


@pytest.mark.parametrize("model_type", ["gpt_bigcode", None, ["llama"]])
def test_an_unregistered_architecture_names_the_registered_ones(model_type: object) -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        family_module(model_type)
    assert str(caught.value) == Naming(f"{model_type!r}", "llama, mistral, qwen2, qwen3")


def test_a_configuration_without_an_architecture_is_refused_with_one_sentence(tmp_path: Path) -> None:
    raw = {name: value for name, value in LLAMA.items() if name != "model_type"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelLoadError, match="names no model_type"):
        read_architecture(tmp_path, raw)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_registered_architecture_is_read_by_its_family(model_type: str) -> None:
    found = read_architecture(Path(), LLAMA | {"model_type": model_type})
    assert found.family.__name__ == FAMILIES[model_type]  # type: ignore[attr-defined]
    assert found.config.num_layers == LLAMA["num_hidden_layers"]


def test_the_fallback_is_none_of_the_families() -> None:
    assert FALLBACK not in FAMILIES.values()
