"""A pipeline of videos with random weights, a few megabytes, whose videos have 5 frames of 32 x 32 pixels."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

_MARKS = ("<pad>", "</s>", "<unk>")
_CHANNELS = 4


def build_video_pipeline(folder: Path) -> Path:
    """Write the folder and return it. Its scheduler keeps the outputs of the steps before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers about numpy
        _pipeline().save_pretrained(folder)
    defaults = {"size": "32x32", "frames": 5, "fps": 8, "steps": 4}
    (folder / "generation_defaults.json").write_text(json.dumps(defaults))
    return folder


def _pipeline() -> Any:
    torch.manual_seed(0)
    names = [*_MARKS, "▁", *map(chr, range(33, 127))]
    tokenizer = T5Tokenizer([(name, -1.0) for name in names], extra_ids=0)
    text = UMT5Config(
        vocab_size=len(names), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        text_dim=32,
        freq_dim=64,
        ffn_dim=64,
        num_layers=2,
        qk_norm="rms_norm_across_heads",
        cross_attn_norm=True,
    )
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * _CHANNELS,
        latents_std=[1.0] * _CHANNELS,
    )
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text),
        transformer=transformer,
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
