"""Tiny models of architectures that run through transformers' own code; ``tiny`` has those of the fast path.

Random weights from a fixed seed, wide enough that answers use many different tokens.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCAB = 320

_TOKENS: dict[str, object] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES: dict[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_GPT2: dict[str, object] = {
    "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "tie_word_embeddings": False,
}  # fmt: skip
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

SUPPORTED: Mapping[str, Mapping[str, object]] = {
    "gpt2": _GPT2,
    "gptj": _GPT2 | {"rotary_dim": 8},
    "gpt_bigcode": _GPT2,
    "gpt_neox": _SIZES,
    "opt": _SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "phi": _SIZES,
    "phi3": _SIZES | {"sliding_window": 13},
    "gemma2": _SIZES
    | {"head_dim": 16, "sliding_window": 16, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0},
    "gemma3_text": _SIZES | {"head_dim": 16, "sliding_window": 16, "layer_types": _MIXED},
    "olmo2": _SIZES,
    "granite": _SIZES
    | {"attention_multiplier": 0.2, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0},
    "stablelm": _SIZES,
    "starcoder2": _SIZES | {"sliding_window": 10},
    "cohere": _SIZES,
    "cohere2": _SIZES | {"sliding_window": 16, "layer_types": _MIXED},
    "mixtral": _SIZES | {"sliding_window": 9, "num_local_experts": 4},
    "qwen2_moe": _SIZES | _EXPERTS | {"shared_expert_intermediate_size": 96},
    "qwen3_moe": _SIZES | _EXPERTS,
    "olmoe": _SIZES | _EXPERTS,
    "smollm3": _SIZES,
    "exaone4": _SIZES | {"sliding_window": 12, "layer_types": _MIXED},
    "glm4": _SIZES | {"head_dim": 16},
    "nemotron": _SIZES,
    "biogpt": _SIZES,
    # The fast path's families with an option that it does not have.
    "llama": _SIZES
    | {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        }
    },
    "qwen2": _SIZES | {"hidden_act": "gelu"},
}

REFUSED: Mapping[str, tuple[Mapping[str, object], str]] = {
    "falcon": ({"new_decoder_architecture": True, "alibi": False, "num_kv_heads": 2}, "does not leave attention"),
    "bloom": ({}, "does not leave attention and masks to transformers' interfaces"),
    "mpt": ({}, "does not leave attention and masks to transformers' interfaces"),
    "mamba": ({}, "0 of its 32 layers attend through transformers' attention interface"),
    "rwkv": ({}, "0 of its 32 layers attend through transformers' attention interface"),
    "t5": ({}, "it is an encoder-decoder"),
    "bert": (_SIZES, "its tokens see something else than all earlier ones"),
    "gpt_oss": (_SIZES | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}, "attention needs s_aux"),
    "deepseek_v3": (
        _SIZES
        | {
            "num_key_value_heads": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "q_lora_rank": 16,
            "kv_lora_rank": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        },
        "as in multi-head latent attention",
    ),
    "gemma3": ({}, "it reads more than text"),
}  # fmt: skip


def configuration(model_type: str, options: Mapping[str, object]) -> PretrainedConfig:
    """Return a configuration of transformers."""
    return CONFIG_MAPPING[model_type](**(_TOKENS | options))


def build_other(model_type: str, **changes: object) -> PreTrainedModel:
    """Return a supported model in which every weight matters, with its own attention code."""
    torch.manual_seed(1234)
    config = configuration(model_type, {**SUPPORTED[model_type], **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and not name.endswith("bias"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.1 if name.endswith("bias") else 0.2)
    return model


def save_configuration(model_type: str, options: Mapping[str, object], folder: Path) -> Path:
    """Write ``config.json`` alone and return its folder."""
    configuration(model_type, options).save_pretrained(folder)
    return folder
