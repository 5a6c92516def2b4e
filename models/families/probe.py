"""Can transformers' own code of an architecture run over our paged cache? Asked of the code, before any weights.

The model is built without memory for its weights (torch's meta device) and run over a few tokens, with an attention and
a mask of ours in place of its own. What passes through them is all that the paged attention will ever see; whatever an
architecture does beside them (a bias in the mask, sinks, a state of its own) makes it one that cannot run here. What
this cannot see, such as a convolution over earlier tokens, the numbers show at loading (``families/selfcheck.py``).
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import logging

from store.errors import ModelLoadError

_NAME = "headrace_probe"
_HONOURED = ("scaling", "softcap")
"""What an attention function may be handed, for ours to do."""

_REPEATED = ("sliding_window", "is_causal", "position_ids", "cache_position", "use_cache", "dropout")
"""What it may be handed because the mask says the same, or because it concerns training or transformers' own cache."""


@dataclass(frozen=True, slots=True)
class GenericGeometry:
    """The sizes of an architecture that runs through transformers. As ``Geometry``."""

    vocab_size: int
    context_window: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]

    @property
    def num_layers(self) -> int:
        """How many layers attend, which is how many there are."""
        return len(self.windows)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Stands where a mask would: what the architecture lets a token see. Any arithmetic on it fails, and is refused."""

    span: int | None


@dataclass(frozen=True, slots=True)
class _Layer:
    """What one attention was called with."""

    index: int
    num_kv_heads: int
    head_dim: int
    span: int | None


class _Refused(Exception):
    """Why an architecture cannot run here; said within a sentence that names it."""


_seen: ContextVar[list[_Layer]] = ContextVar("seen")
_context: ContextVar[int] = ContextVar("context")


def probe(folder: Path, raw: Mapping[str, Any]) -> GenericGeometry:
    """Return the geometry of a model folder's architecture, whose ``config.json`` is ``raw``.

    Raises ModelLoadError, with one sentence, if it cannot run over the paged cache.
    """
    silence()
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises whatever its parts do
        if "auto_map" in raw:
            raise ModelLoadError(
                f"{folder} brings code of its own, and code that comes with weights is not run"
            ) from error
        raise ModelLoadError(
            f"{folder / 'config.json'} names no architecture of transformers: {_brief(error)}"
        ) from error
    try:
        _refuse_by_config(config)
        return _geometry(config)
    except _Refused as reason:
        raise ModelLoadError(f"model_type {config.model_type!r} cannot run here: {reason}") from reason


def silence() -> None:
    """Turn off transformers' progress bars and advice; what matters of them is an error of ours."""
    transformers_logging: Any = logging  # it has no annotations
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _context_window(config: Any) -> int | None:
    """Return how many positions the model was made for; a LongRoPE model has as many as its short factors cover.

    Beyond those, the longest request of a batch would change the angles of all the others.
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
    """The first line of a library's message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0][:200]}"


def _refuse_by_config(config: Any) -> None:
    if config.is_encoder_decoder:
        raise _Refused("it is an encoder-decoder, and only decoders run here")
    if config.get_text_config() is not config:
        raise _Refused("it reads more than text; give the folder of its text model")
    if getattr(config, "quantization_config", None):
        raise _Refused("its weights are quantised; give float weights")


def _geometry(config: Any) -> GenericGeometry:
    context = _context_window(config)
    layers, vocab_size = _run(config, context or 1)
    if [layer.index for layer in layers] != list(range(config.num_hidden_layers)):
        raise _Refused(
            f"{len(layers)} of its {config.num_hidden_layers} layers attend through transformers' attention interface, "
            "and only those keep their keys and values in the paged cache"
        )
    if context is None:
        raise _Refused("its configuration does not say how many positions it has")
    sizes = {(layer.num_kv_heads, layer.head_dim) for layer in layers}
    if len(sizes) > 1:
        raise _Refused("its layers have key-value heads of different numbers or sizes")
    num_kv_heads, head_dim = sizes.pop()
    return GenericGeometry(vocab_size, context, num_kv_heads, head_dim, tuple(layer.span for layer in layers))


def _run(config: Any, context: int) -> tuple[list[_Layer], int]:
    """Return what each attention was called with, in order, and how many tokens the model scores."""
    seen: list[_Layer] = []
    tokens = (_seen.set(seen), _context.set(context))
    try:
        # In bfloat16 because torch's grouped products, which mixtures of experts use, know no other type here.
        with torch.device("meta"), torch.inference_mode():
            build: Any = AutoModelForCausalLM.from_config
            model = build(config, attn_implementation=_NAME, dtype=torch.bfloat16).eval()
            ids = torch.zeros((1, 3), dtype=torch.long)
            found = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=ids, use_cache=False)
    except _Refused:
        raise
    except Exception as error:  # the library raises whatever its parts do
        raise _Refused(
            f"its code does not leave attention and masks to transformers' interfaces ({_brief(error)})"
        ) from error
    finally:
        _seen.reset(tokens[0])
        _context.reset(tokens[1])
    return seen, found.logits.shape[-1]


def _mask(*, mask_function: Callable[..., torch.Tensor], **_: Any) -> _Asked:
    """Called by transformers in place of making a mask."""
    return _Asked(_span(mask_function, _context.get()))


def _span(is_visible: Callable[..., torch.Tensor], context: int) -> int | None:
    """Return how many tokens back a mask function lets a token see, None for all of them."""
    with torch.device("cpu"):
        earlier = torch.arange(context)
        zero = torch.tensor(0)
        seen_by_last = is_visible(zero, zero, torch.tensor(context - 1), earlier).expand(context)
        span = int(seen_by_last.sum())
        samples = {0, 1, span - 1, span, span + 1, context // 3, context // 2, context - 2, context - 1}
        for position in sorted(samples & set(range(context))):
            expected = (earlier <= position) & (earlier > position - span)
            if not torch.equal(is_visible(zero, zero, torch.tensor(position), earlier).expand(context), expected):
                raise _Refused("its tokens see something else than all earlier ones or the last few of them")
    return None if span == context else span


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: object, **given: Any
) -> tuple[torch.Tensor, None]:
    """Called by transformers in place of attention: notes sizes, and refuses what the paged one could not honour."""
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise _Refused("its attention does not know which layer it is in")
    if not isinstance(attention_mask, _Asked):
        raise _Refused("its attention mask is not made through transformers' mask interface")
    if key.shape != value.shape or query.shape[3] != key.shape[3]:
        raise _Refused("its queries, keys and values differ in size, as in multi-head latent attention")
    asked = {name for name, found in given.items() if found is not None and found is not False}
    if unknown := asked.difference(_HONOURED, _REPEATED):
        raise _Refused(f"its attention needs {', '.join(sorted(unknown))}, which the paged attention does not have")
    _seen.get().append(_Layer(index, key.shape[1], key.shape[3], attention_mask.span))
    return query.transpose(1, 2), None
