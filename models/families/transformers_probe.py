"""Probes if the transformers code of an architecture can run on the paged KV cache, before any weights are read.

The model is built without memory for its weights (torch's meta device) and reads a few tokens, with an attention
function and a mask function of the probe. Paged attention sees only the arguments of these two. So an architecture
that does anything else (a bias in the mask, attention sinks, other state) is refused. The probe cannot see every fault,
such as a convolution over earlier tokens; ``transformers_check`` finds those when the weights are loaded.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
)
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import logging

from headrace.models.families.model_config import quantized_elsewhere
from headrace.store.errors import ModelLoadError
from headrace.store.registry.engine_spec import SERVER_ADVICE
from headrace.store.tasks.own_task import OWN_TASK_ADVICE

_NAME = "headrace_probe"
_HONOURED = ("scaling", "softcap")
"""Arguments of an attention function that paged attention supports."""

_REPEATED = ("sliding_window", "is_causal", "position_ids", "cache_position", "use_cache", "dropout")
"""Arguments that it may ignore: the mask has the same information, or they are for training or another cache."""


@dataclass(frozen=True, slots=True)
class ProbedConfig:
    """The ``ModelConfig`` of an architecture that runs on transformers."""

    vocab_size: int
    context_window: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]

    @property
    def num_layers(self) -> int:
        """The number of layers. Each has attention."""
        return len(self.windows)


@dataclass(frozen=True, slots=True)
class _MaskWindow:
    """Replaces the attention mask: the sliding window, or None. Arithmetic on it fails, and the probe refuses."""

    window: int | None


@dataclass(frozen=True, slots=True)
class _AttentionCall:
    """The arguments of one attention call."""

    index: int
    num_kv_heads: int
    head_dim: int
    window: int | None


class _ProbeFailed(Exception):
    """The reason why an architecture cannot run here, and ``advice``: the end of the sentence, what can be done."""

    def __init__(self, reason: str, advice: str = f"; {SERVER_ADVICE}; {OWN_TASK_ADVICE}") -> None:
        super().__init__(reason)
        self.advice = advice


_seen: ContextVar[list[_AttentionCall]] = ContextVar("seen")
_context: ContextVar[int] = ContextVar("context")


def probe(folder: Path, raw: Mapping[str, Any]) -> ProbedConfig:
    """Return the configuration of a model folder with the ``config.json`` ``raw``.

    Raises ModelLoadError, with one sentence, if it cannot run over the paged cache.
    """
    silence()
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises errors of any type
        raise ModelLoadError(_why_unreadable(folder, raw, error)) from error
    try:
        _refuse_by_config(config)
        return _probed_config(config)
    except _ProbeFailed as reason:
        raise ModelLoadError(f"model_type {config.model_type!r} cannot run here: {reason}{reason.advice}") from reason


def _why_unreadable(folder: Path, raw: Mapping[str, Any], error: Exception) -> str:
    kind, advice = raw.get("model_type"), f"{SERVER_ADVICE}; {OWN_TASK_ADVICE}"
    if "auto_map" in raw:
        return f"{folder} brings code of its own, and code that comes with weights is not run here; {advice}"
    if kind is None:
        return f"{folder / 'config.json'} names no model_type, so nothing says what the weights are: add it"
    if kind not in CONFIG_MAPPING:
        return f"{folder / 'config.json'}: transformers, as installed here, knows no model_type {kind!r}; {advice}"
    return f"{folder / 'config.json'} cannot be read by transformers: {_brief(error)}"


def silence() -> None:
    """Turn off the progress bars and warnings of transformers."""
    transformers_logging: Any = logging  # it has no annotations
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _context_window(config: Any) -> int | None:
    """Return the number of positions of the model. For LongRoPE it is the range of the short factors.

    Beyond it, the longest request of a batch would change the angles of all other requests.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if each.get("rope_type") == "longrope":
            longest = min(longest, each.get("original_max_position_embeddings") or longest)
    return longest


def _brief(error: Exception) -> str:
    """Return the first line of the message of a library."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _refuse_by_config(config: Any) -> None:
    if config.is_encoder_decoder:
        raise _ProbeFailed("it is an encoder-decoder, and only decoders run here", f"; {OWN_TASK_ADVICE}")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and config.get_text_config() is config:
        raise _ProbeFailed("transformers has no model of this type that generates text", f"; {OWN_TASK_ADVICE}")
    if config.get_text_config() is not config:
        raise _ProbeFailed("it reads more than text; give the folder of its text model")
    if quantization := getattr(config, "quantization_config", None):
        raise _ProbeFailed(quantized_elsewhere(quantization), "")


def _probed_config(config: Any) -> ProbedConfig:
    context = _context_window(config)
    layers, vocab_size = _run(config, context or 1)
    if [layer.index for layer in layers] != list(range(config.num_hidden_layers)):
        raise _ProbeFailed(
            f"{len(layers)} of its {config.num_hidden_layers} layers attend through transformers' attention interface, "
            "and only those keep their keys and values in the paged cache"
        )
    if context is None:
        raise _ProbeFailed("its configuration does not say how many positions it has")
    sizes = {(layer.num_kv_heads, layer.head_dim) for layer in layers}
    if len(sizes) > 1:
        raise _ProbeFailed("its layers have key-value heads of different numbers or sizes")
    num_kv_heads, head_dim = sizes.pop()
    return ProbedConfig(vocab_size, context, num_kv_heads, head_dim, tuple(layer.window for layer in layers))


def _run(config: Any, context: int) -> tuple[list[_AttentionCall], int]:
    """Return the attention calls in order, and the size of the vocabulary."""
    seen: list[_AttentionCall] = []
    tokens = (_seen.set(seen), _context.set(context))
    try:
        # bfloat16, because the grouped products of torch, for mixtures of experts, support no other type here.
        with torch.device("meta"), torch.inference_mode():
            model = _build(config)
            ids = torch.zeros((1, 3), dtype=torch.long)
            found = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=ids, use_cache=False)
    except _ProbeFailed:
        raise
    except Exception as error:  # the library raises errors of any type
        # Not the error's own words: they are about the probe.
        raise _ProbeFailed("its code does not leave attention and masks to transformers' interfaces") from error
    finally:
        _seen.reset(tokens[0])
        _context.reset(tokens[1])
    return seen, found.logits.shape[-1]


def _build(config: Any) -> Any:
    try:
        build: Any = AutoModelForCausalLM.from_config
        return build(config, attn_implementation=_NAME, dtype=torch.bfloat16).eval()
    except Exception as error:
        if _NAME in str(error):
            raise  # it looks for the attention function in a list of its own
        raise _ProbeFailed(f"transformers cannot make it of this config.json ({_brief(error)})") from error


def _mask(*, mask_function: Callable[..., torch.Tensor], **_: Any) -> _MaskWindow:
    """The mask function for transformers."""
    return _MaskWindow(_window_of(mask_function, _context.get()))


def _window_of(is_visible: Callable[..., torch.Tensor], context: int) -> int | None:
    """Return the sliding window of a mask function in tokens, None if there is none."""
    with torch.device("cpu"):
        earlier = torch.arange(context)
        zero = torch.tensor(0)
        seen_by_last = is_visible(zero, zero, torch.tensor(context - 1), earlier).expand(context)
        window = int(seen_by_last.sum())
        samples = {0, 1, window - 1, window, window + 1, context // 3, context // 2, context - 2, context - 1}
        for position in sorted(samples & set(range(context))):
            expected = (earlier <= position) & (earlier > position - window)
            if not torch.equal(is_visible(zero, zero, torch.tensor(position), earlier).expand(context), expected):
                raise _ProbeFailed("its tokens see something else than all earlier ones or the last few of them")
    return None if window == context else window


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: object, **given: Any
) -> tuple[torch.Tensor, None]:
    """The attention function for transformers: records sizes, and refuses what paged attention does not support."""
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise _ProbeFailed("its attention does not know which layer it is in")
    if not isinstance(attention_mask, _MaskWindow):
        raise _ProbeFailed("its attention mask is not made through transformers' mask interface")
    if key.shape != value.shape or query.shape[3] != key.shape[3]:
        raise _ProbeFailed("its queries, keys and values differ in size, as in multi-head latent attention")
    asked = {name for name, found in given.items() if found is not None and found is not False}
    if unknown := asked.difference(_HONOURED, _REPEATED):
        raise _ProbeFailed(f"its attention needs {', '.join(sorted(unknown))}, which the paged attention does not have")
    _seen.get().append(_AttentionCall(index, key.shape[1], key.shape[3], attention_mask.window))
    return query.transpose(1, 2), None
