"""The probe of transformers' code before weights are loaded, and its refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.models.families import transformers_fallback, transformers_probe
from headrace.models.families.model_folder import read_json
from headrace.models.families.transformers_probe import ProbedConfig, probe
from headrace.store.errors import ModelLoadError
from tests.models.others import REFUSED, SUPPORTED, save_configuration
from tests.stand_ins import stand_in


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
        ({"model_type": "newest"}, "model_type 'newest'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "(gptq)"),
        ({"n_head": 5}, "cannot make it of this config.json"),
    ],
)
def test_a_configuration_that_says_too_little_is_refused(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    folder = save_configuration("gpt2", SUPPORTED["gpt2"], tmp_path)
    raw = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(raw | changes))
    assert reason in refusal(folder)


def attention(**changes: Any) -> dict[str, Any]:
    """The arguments of an attention call that the paged cache supports."""
    query, key = torch.zeros(1, 4, 3, 16), torch.zeros(1, 2, 3, 16)
    given = {"query": query, "key": key, "value": key, "attention_mask": transformers_probe._MaskWindow(None)}
    return {"module": stand_in(layer_idx=1)} | given | changes


OF_TRAINING = {"is_causal": True, "position_ids": 1, "cache_position": 1, "use_cache": True, "dropout": 0.1}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (OF_TRAINING | {"scaling": 0.5, "softcap": 5.0, "sliding_window": 9, "s_aux": None, "bias": False}, None),
        ({"module": stand_in()}, "which layer"),
        ({"module": stand_in(layer_idx=None)}, "which layer"),
        ({"attention_mask": None}, "attention mask"),
        (
            {"value": torch.zeros(1, 2, 3, 8)},
            "differ in size",
        ),
        (
            {"query": torch.zeros(1, 4, 3, 8)},
            "differ in size",
        ),
        ({"s_aux": 1, "bias": 2}, "bias, s_aux"),
    ],
)
def test_an_attention_that_asks_for_more_is_refused(given: dict[str, Any], reason: str | None) -> None:
    seen: list[Any] = []
    token = transformers_probe._seen.set(seen)
    try:
        if reason is None:
            assert transformers_probe._attention(**attention(**given))[0].shape == (1, 3, 4, 16)
            assert seen == [transformers_probe._AttentionCall(1, 2, 16, None)]
            return
        with pytest.raises(transformers_probe._ProbeFailed) as refused:
            transformers_probe._attention(**attention(**given))
        assert reason in str(refused.value)
        assert seen == []
    finally:
        transformers_probe._seen.reset(token)


@pytest.mark.parametrize(
    ("config", "layers", "reason"),
    [
        (
            {"max_position_embeddings": 0},
            [(0, 2, 16), (1, 2, 16)],
            "how many positions",
        ),
        ({}, [(0, 2, 16), (1, 4, 16)], "key-value heads"),
        ({}, [(0, 2, 16), (1, 2, 8)], "key-value heads"),
        (
            {},
            [(1, 2, 16), (0, 2, 16)],
            "2 of its 2 layers",
        ),
    ],
)
def test_layers_must_be_alike_and_attend_in_order(
    config: dict[str, Any], layers: list[tuple[int, int, int]], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [transformers_probe._AttentionCall(*layer, None) for layer in layers]
    monkeypatch.setattr(transformers_probe, "_run", lambda _config, _context: (calls, 320))
    with pytest.raises(transformers_probe._ProbeFailed) as refused:
        transformers_probe._probed_config(
            stand_in(**({"num_hidden_layers": 2, "max_position_embeddings": 64} | config))
        )
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("rope", "window"),
    [
        (None, 64),
        ({"rope_type": "yarn", "original_max_position_embeddings": 8}, 64),
        ({"rope_type": "longrope", "original_max_position_embeddings": 8}, 8),
        ({"rope_type": "longrope", "original_max_position_embeddings": 128}, 64),
        ({"rope_type": "longrope"}, 64),
        ({"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 16}, "theta": 1.0}, 16),
    ],
)
def test_a_context_ends_with_the_short_factors_of_long_rope(rope: dict[str, Any] | None, window: int) -> None:
    config = stand_in(max_position_embeddings=64, rope_parameters=rope)
    assert transformers_probe._context_window(config) == window


def test_8_bits_are_for_the_llama_family_alone(tmp_path: Path) -> None:
    config = ProbedConfig(320, 64, 2, 16, (None,))
    with pytest.raises(ModelLoadError) as refused:
        transformers_fallback.load(tmp_path, config, context=64, dtype=torch.int8, device=torch.device("cpu"))
    assert "int8 " in str(refused.value)
    assert transformers_fallback.adaptable(config) == {}


def test_code_beside_the_weights_is_never_run(tmp_path: Path) -> None:
    folder = save_configuration("gpt2", SUPPORTED["gpt2"], tmp_path)
    raw = json.loads((folder / "config.json").read_bytes())
    theirs = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "theirs", "auto_map": theirs}))
    (folder / "theirs.py").write_text("raise SystemExit('ran')")
    assert "code of its own" in refusal(folder)
