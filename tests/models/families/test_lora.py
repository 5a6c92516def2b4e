"""An adapter's folder read number by number: the scale, the rank of each module, and the refusals."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.models.families.lora import CONFIG_FILE, MAX_RANK, WEIGHTS_FILE, adapter_digest, read_adapter
from headrace.models.families.registry import Architecture, read_architecture
from headrace.store.errors import ModelLoadError
from tests.models.families.test_llama import LLAMA
from tests.stand_ins import stand_in

CONFIG: Mapping[str, object] = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}


AS_TRAINED: Mapping[str, object] = {
    "auto_mapping": {"base_model_class": "LlamaForCausalLM"},
    "base_model_name_or_path": "org/base",
    "corda_config": {"corda_method": "kpm"},
    "ensure_weight_tying": True,
    "eva_config": {"rho": 2.0},
    "exclude_modules": ["lm_head"],
    "inference_mode": True,
    "layers_pattern": "layers",
    "layers_to_transform": [0, 1],
    "loftq_config": {"loftq_bits": 4},
    "lora_dropout": 0.05,
    "lora_ga_config": {"direction": "ArB2r"},
    "megatron_core": "megatron.core",
    "peft_version": "0.18.0",
    "qalora_group_size": 16,
    "revision": "main",
    "runtime_config": {"ephemeral_gpu_offload": False},
    "target_modules": ["q_proj"],
    "task_type": "CAUSAL_LM",
}
"""Fields that PEFT writes about an adapter's training and place. None changes its results."""


def base() -> Architecture:
    return read_architecture(Path(), LLAMA)


def write(folder: Path, ranks: Mapping[tuple[int, str], int], **config: object) -> Path:
    """Write an adapter of ones for ``q_proj`` or ``v_proj`` of some layers, with these ranks."""
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG | config))
    tensors = {}
    for (layer, name), rank in ranks.items():
        module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
        tensors[f"{module}.lora_A.weight"] = torch.full((rank, 64), layer + 1.0)
        tensors[f"{module}.lora_B.weight"] = torch.ones(64, rank)
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def scales(folder: Path) -> list[dict[str, tuple[int, float, float]]]:
    """Return by layer and module the rank, a number of A, and one of B, which has the scale in it."""
    return [
        {name: (one.rank, float(one.a[0, 0]), round(float(one.b[0, 0]), 4)) for name, one in layer.items()}
        for layer in read_adapter(folder, base())
    ]


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 4.2426),
        ({"lora_alpha": 1.5}, 0.75),
        ({"alpha_pattern": {"q_proj": 8, "self_attn": 1}}, 4.0),
        ({"alpha_pattern": {"proj": 8}}, 3.0),
        ({"alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 8}}, 4.0),
        ({"alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 8}}, 3.0),
        ({"alpha_pattern": None, "rank_pattern": {}, "bias": "none", "init_lora_weights": "eva"}, 3.0),
        ({"lora_dropout": 0.5, "target_modules": ["x"], "use_dora": False, "modules_to_save": None}, 3.0),
        (AS_TRAINED, 3.0),
        *(({"init_lora_weights": begun}, 3.0) for begun in (True, False, None, "gaussian", "orthogonal")),
    ],
)
def test_b_has_the_scale_of_its_module(tmp_path: Path, config: dict[str, object], scale: float) -> None:
    folder = write(tmp_path, {(1, "q_proj"): 2}, **config)
    assert scales(folder) == [{}, {"self_attn.q_proj": (2, 2.0, scale)}, {}]


def test_a_pattern_gives_a_module_a_rank_of_its_own(tmp_path: Path) -> None:
    ranks = {(0, "q_proj"): 4, (0, "v_proj"): 2, (2, "q_proj"): 4}
    folder = write(tmp_path, ranks, rank_pattern={"q_proj": 4})
    assert scales(folder) == [
        {"self_attn.q_proj": (4, 1.0, 1.5), "self_attn.v_proj": (2, 1.0, 3.0)},
        {},
        {"self_attn.q_proj": (4, 3.0, 1.5)},
    ]


def test_the_largest_rank_is_taken_and_the_next_is_not(tmp_path: Path) -> None:
    assert scales(write(tmp_path, {(0, "q_proj"): MAX_RANK}, r=MAX_RANK, lora_alpha=MAX_RANK))[0] == {
        "self_attn.q_proj": (512, 1.0, 1.0)
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 513}, "512, not 513"),
        ({"r": 0}, "512, not 0"),
        ({"r": True}, "512, not True"),
        ({"r": 2.0}, "512, not 2.0"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        (
            {"alpha_pattern": {"(": 1}},
            "alpha_pattern: '('",
        ),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"peft_type": None}, "peft_type None"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"use_dora": True}, "use_dora=False"),
        ({"modules_to_save": ["lm_head"]}, "(modules_to_save)"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_an_option_that_cannot_be_computed_is_refused(tmp_path: Path, config: dict[str, object], message: str) -> None:
    with pytest.raises(ModelLoadError) as refused:
        read_adapter(write(tmp_path, {(0, "q_proj"): 2}, **config), base())
    assert str(refused.value).startswith(f"{CONFIG_FILE}: ")
    assert message in str(refused.value)


def test_a_layer_or_a_module_that_the_base_has_not_is_refused(tmp_path: Path) -> None:
    known = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    for place, what in (((3, "q_proj"), "layer 3, self_attn.q_proj"), ((0, "x_proj"), "layer 0, self_attn.x_proj")):
        with pytest.raises(ModelLoadError) as refused:
            read_adapter(write(tmp_path, {place: 2}), base())
        assert all(each in str(refused.value) for each in (what, "3 layers", known))


def test_a_base_that_runs_no_adapters_is_refused(tmp_path: Path) -> None:
    other = Architecture(stand_in(adaptable=lambda config: {}), base().config)
    with pytest.raises(ModelLoadError) as refused:
        read_adapter(write(tmp_path, {(0, "q_proj"): 2}), other)
    assert "no adapters" in str(refused.value)


def test_numbers_that_are_not_finite_are_refused_with_their_place(tmp_path: Path) -> None:
    folder = write(tmp_path, {(1, "v_proj"): 2})
    tensors = load_file(folder / WEIGHTS_FILE)
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    tensors[name][3, 1] = torch.inf
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(ModelLoadError) as refused:
        read_adapter(folder, base())
    assert f"{WEIGHTS_FILE}: model.layers.1.self_attn.v_proj.lora_B " in str(refused.value)


def test_the_digest_is_of_both_files(tmp_path: Path) -> None:
    folder = write(tmp_path, {(0, "q_proj"): 2})
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    assert adapter_digest(folder) == hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(ModelLoadError, match=CONFIG_FILE):
        adapter_digest(folder)
