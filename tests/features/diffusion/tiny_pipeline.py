"""A pipeline of pictures with random weights, a few megabytes, whose pictures have 64 x 64 pixels."""

import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

_BLOCKS = (32, 64)
_MARKS = ("<|startoftext|>", "<|pad|>", "<|endoftext|>")


def build_pipeline(folder: Path) -> Path:
    """Write the folder and return it. Its scheduler draws noise in every step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers about numpy
        _pipeline().save_pretrained(folder)
    return folder


def add_adapter(folder: Path) -> None:
    """Write a LoRA adapter into the folder of a pipeline, with random weights for its attention."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers about numpy
        pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=layers)


def _pipeline() -> Any:
    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    names = [*_MARKS, *letters, *(f"{letter}</w>" for letter in letters)]
    start, pad, end = _MARKS
    tokenizer = CLIPTokenizer(
        vocab={name: number for number, name in enumerate(names)},
        merges=[],
        bos_token=start,
        pad_token=pad,
        eos_token=end,
        unk_token=end,
        model_max_length=77,
    )
    text = CLIPTextConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=_BLOCKS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=_BLOCKS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    return StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        scheduler=EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
