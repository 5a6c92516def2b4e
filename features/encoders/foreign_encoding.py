"""What other servers call things: fields of embeddings and rerank that are not supported under this name.

As ``features.openai.foreign_fields``, which has those of requests for text.
"""

from collections.abc import Mapping

from headrace.producer_api.http.job_options import (
    INSTEAD_OF_CACHE_SALT,
    INSTEAD_OF_PRIORITY,
    IsHarmless,
    is_off,
    is_one_of,
)

_NEVER = is_one_of()

FOREIGN_ENCODING: Mapping[str, IsHarmless] = {
    # What is encoded.
    **dict.fromkeys(("prompt_name", "instruction", "input_type", "task", "task_type", "title", "prefix"), is_off),
    **dict.fromkeys(("messages", "prompt", "chat_template", "chat_template_kwargs", "images", "content"), is_off),
    **dict.fromkeys(("lora", "lora_name", "lora_request", "adapter", "adapter_id", "late_chunking"), is_off),
    **dict.fromkeys(("truncate_prompt_tokens", "max_chunks_per_doc", "max_tokens_per_doc", "max_length"), _NEVER),
    "truncation_direction": is_one_of("right", "Right"),
    "add_special_tokens": is_one_of(True),
    "rank_fields": is_off,
    **dict.fromkeys(("max_tokens_per_query", "truncation_side"), _NEVER),
    **dict.fromkeys(("mm_processor_kwargs", "media_io_kwargs", "late_chunking_params", "embed_overrides"), is_off),
    "padding": is_one_of(False),
    # Where it is computed, and when.
    **dict.fromkeys(("priority", "cache_salt"), is_off),
    # What the vectors and scores are.
    **dict.fromkeys(("normalize", "pooling", "pooling_type", "use_activation", "activation", "softmax"), _NEVER),
    **dict.fromkeys(("output_dimension", "output_dimensionality", "dims", "raw_scores"), _NEVER),
    **dict.fromkeys(("embedding_types", "embedding_type"), is_one_of("float", ["float"])),
    **dict.fromkeys(("embed_dtype", "output_dtype"), is_one_of("float", "float32")),
    "endianness": is_one_of("native", "little"),
    **dict.fromkeys(("options", "parameters", "extra_body"), is_off),
}
ENCODING_INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(("prompt_name", "instruction", "input_type", "task", "task_type"), "put it before each text"),
    **dict.fromkeys(("truncate_prompt_tokens", "max_length", "max_tokens_per_doc"), "send `truncate`"),
    **dict.fromkeys(("output_dimension", "output_dimensionality", "dims"), "send `dimensions`"),
    **dict.fromkeys(("embedding_types", "embedding_type"), "send `encoding_format`"),
    **dict.fromkeys(("lora", "lora_name", "lora_request", "adapter", "adapter_id"), "name a `model`"),
    **dict.fromkeys(("options", "parameters", "extra_body"), "send its fields beside `model`"),
    **dict.fromkeys(("normalize", "pooling", "pooling_type"), "the model's own files decide"),
    "priority": INSTEAD_OF_PRIORITY,
    "cache_salt": INSTEAD_OF_CACHE_SALT,
    "max_tokens_per_query": "send a shorter query",
    "messages": "send `input`",
    "content": "send `input`",
}
