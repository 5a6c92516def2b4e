"""The folder of an encoder: which architectures run, and the number of positions."""

from collections.abc import Mapping
from typing import Any

from headrace.prompts.folder_json import whole_number

# The first position embedding of these types comes after that of the padding token.
_OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert", "mpnet")
ENCODER_TYPES = (*_OFFSET_TYPES, "bert", "distilbert", "electra", "albert", "deberta", "deberta-v2", "modernbert")
"""The values of ``model_type`` that are encoders here."""


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of a model that makes vectors here."""
    return config.get("model_type") in ENCODER_TYPES


def num_positions(config: Mapping[str, Any]) -> int:
    """Return the number of tokens that a model of one of ``ENCODER_TYPES`` has position embeddings for."""
    positions = whole_number(config, "max_position_embeddings")
    offset = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in _OFFSET_TYPES else 0
    return positions - offset
