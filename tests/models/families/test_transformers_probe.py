"""The probe of transformers' code before weights are loaded, and its refusals."""

import json
from pathlib import Path

import pytest

from models.families.model_folder import read_json
from models.families.transformers_probe import ProbedConfig, probe
from store.errors import ModelLoadError
from tests.models.others import REFUSED, SUPPORTED, save_configuration


def look(folder: Path) -> ProbedConfig:
    return probe(folder, read_json(folder / "config.json"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        look(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "kv_heads", "windows"),
    [
        ("gpt2", 4, (None, None, None)),
        ("gpt_bigcode", 1, (None, None, None)),
        ("phi3", 2, (13, 13, 13)),
        ("gemma2", 2, (16, None, 16)),
        ("cohere2", 2, (16, None, 16)),
        ("mixtral", 2, (9, 9, 9)),
    ],
)
def test_sizes_and_spans_are_what_the_code_does(
    model_type: str, kv_heads: int, windows: tuple[int | None, ...], tmp_path: Path
) -> None:
    found = look(save_configuration(model_type, SUPPORTED[model_type], tmp_path))
    assert (found.vocab_size, found.context_window) == (320, 512)
    assert (found.num_layers, found.num_kv_heads, found.head_dim) == (3, kv_heads, 16)
    assert found.windows == windows


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_the_paged_cache_cannot_hold_is_refused_with_its_reason(model_type: str, tmp_path: Path) -> None:
    options, reason = REFUSED[model_type]
    said = refusal(save_configuration(model_type, options, tmp_path))
    assert said.startswith(f"model_type {model_type!r} cannot run here: ")
    assert reason in said


def test_a_window_as_wide_as_the_context_is_none(tmp_path: Path) -> None:
    options = {**SUPPORTED["phi3"], "sliding_window": 512}
    assert look(save_configuration("phi3", options, tmp_path)).windows == (None,) * 3


def test_long_rope_ends_where_a_neighbour_would_change_the_angles(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 128,
    }
    options = {**SUPPORTED["phi3"], "rope_parameters": rope, "original_max_position_embeddings": 128}
    assert look(save_configuration("phi3", options, tmp_path)).context_window == 128


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "newest"}, "names no architecture of transformers"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the weights are quantized (gptq)"),
        ({"n_head": 5}, "does not leave attention and masks"),
    ],
)
def test_a_configuration_that_says_too_little_is_refused(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    folder = save_configuration("gpt2", SUPPORTED["gpt2"], tmp_path)
    raw = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(raw | changes))
    assert reason in refusal(folder)


def test_code_beside_the_weights_is_never_run(tmp_path: Path) -> None:
    folder = save_configuration("gpt2", SUPPORTED["gpt2"], tmp_path)
    raw = json.loads((folder / "config.json").read_bytes())
    theirs = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "theirs", "auto_map": theirs}))
    (folder / "theirs.py").write_text("raise SystemExit('ran')")
    assert "brings code of its own" in refusal(folder)
