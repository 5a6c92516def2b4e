"""Supported values of config.json; no value that changes an answer is ignored."""

import pytest

from headrace.models.families.llama import LlamaConfig, Rope, adaptable, parse_config
from headrace.store.errors import ModelLoadError

LLAMA = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def test_what_is_left_out_has_the_families_defaults() -> None:
    config = parse_config({name: value for name, value in LLAMA.items() if name != "max_position_embeddings"})
    assert config == LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        rms_norm_eps=1e-6,
        context_window=2048,
        rope=Rope(10_000.0),
        tie_embeddings=False,
        windows=(None, None, None),
    )
    assert config.num_layers == 3
    assert parse_config(LLAMA | {"model_type": "qwen3"}).head_dim == 128


def test_what_is_given_is_taken() -> None:
    given = {
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 7e3,
        "tie_word_embeddings": True,
        "sliding_window": 9,
    }
    config = parse_config(LLAMA | given)
    assert config == LlamaConfig(320, 64, 96, 4, 2, 32, 1e-5, 512, Rope(7e3), True, (None,) * 3), "Llama has no window"
    assert adaptable(config) == {
        "self_attn.q_proj": (64, 128),
        "self_attn.k_proj": (64, 64),
        "self_attn.v_proj": (64, 64),
        "self_attn.o_proj": (128, 64),
        "mlp.gate_proj": (64, 96),
        "mlp.up_proj": (64, 96),
        "mlp.down_proj": (96, 64),
    }


def test_both_spellings_of_rope_mean_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = parse_config(LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}})
    new = parse_config(LLAMA | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}})
    assert old == new
    assert parse_config(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2}}).rope == Rope(
        10_000.0, "linear", 2.0, 1.0, 4.0, 8192
    )
    assert old.rope == Rope(5e5, "llama3", 8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 8}, (8, 8, 8)),
        ({"model_type": "mistral", "sliding_window": None}, (None, None, None)),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False}, (None, None, None)),
        ({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1}, (None, None, None)),
        (
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
            (None, None, 8),
        ),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True}, (None, None, None)),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (8, None, 8),
        ),
    ],
)
def test_attention_spans(changes: dict[str, object], windows: tuple[int | None, ...]) -> None:
    assert parse_config(LLAMA | changes).windows == windows


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope"),
        ({"rope_scaling": [1]}, "rope parameters"),
        ({"quantization_config": {"quant_method": "awq"}}, "(awq)"),
        ({"hidden_size": "64"}, "hidden_size "),
        ({"vocab_size": None}, "vocab_size "),
        ({"vocab_size": True}, "vocab_size "),
        ({"rope_theta": 0}, "rope_theta "),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor "),
        ({"num_hidden_layers": 0}, "num_hidden_layers "),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps "),
        ({"num_key_value_heads": 3}, "4 attention heads"),
        *(
            (
                {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "layer_types": kinds},
                "layer_types ",
            )
            for kinds in (["new"] * 3, ["full_attention"] * 2)
        ),
    ],
)
def test_what_is_not_understood_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        parse_config(LLAMA | changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
