"""What other servers call things: fields of requests for text that are not supported under this name.

One list for all faces that generate text; the feature ``encoders`` has one for embeddings and rerank. A field that
would change the answer is refused, with what to send instead, unless its value has no effect. The fields that are
honoured are attributes of the request models, so a field of the list is refused on the faces that do not have it.
vLLM's ``guided_*`` mean ``structured_outputs`` (``features.openai.request_fields``). A field on no list changes no
answer and passes: names of the request and of its caller (``request_id``, ``session_id``, ``trace``), hints to a cache
(``prompt_cache_key``, ``cache_control``), what every answer has (``usage``).
"""

from collections.abc import Mapping

from headrace.producer_api.http.job_options import (
    INSTEAD_OF_CACHE_SALT,
    INSTEAD_OF_PRIORITY,
    IsHarmless,
    is_off,
    is_one_of,
    unsupported,
)
from headrace.store.errors import InvalidRequest

_NEVER = is_one_of()
_ONE = is_one_of(1, 1.0)

FOREIGN: Mapping[str, IsHarmless] = {
    # Several answers, or what the prompt is like.
    **dict.fromkeys(("n", "best_of", "num_beams", "num_return_sequences"), _ONE),
    **dict.fromkeys(("use_beam_search", "prompt_logprobs", "echo", "return_full_text"), is_off),
    "truncate_prompt_tokens": _NEVER,
    **dict.fromkeys(("retrieval", "server_tools"), _NEVER),  # of chats and jobs
    # The form of the answer.
    **dict.fromkeys(("regex", "ebnf", "json_schema", "structural_tag", "grammar", "json_object"), is_off),
    **dict.fromkeys(("guided_json_object", "guided_whitespace_pattern", "guided_structural_tag", "format"), is_off),
    # Where the answer ends.
    **dict.fromkeys(("stop_regex", "stop_strings", "stop_sequences", "stop_words", "suffix"), is_off),
    **dict.fromkeys(("include_stop_str_in_output", "no_stop_trim", "min_length"), is_off),
    **dict.fromkeys(("max_new_tokens", "max_gen_len", "max_length", "num_predict"), _NEVER),
    "n_predict": is_one_of(-1),
    "min_new_tokens": is_off,
    **dict.fromkeys(("repetition_detection", "early_stopping", "t_max_predict_ms", "n_indent"), is_off),
    # How tokens are chosen.
    **dict.fromkeys(("typical_p", "typical", "length_penalty", "tfs_z", "tfs", "repeat_penalty"), _ONE),
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale", "repetition_penalty_range"), _ONE),
    **dict.fromkeys(("mirostat", "mirostat_mode", "xtc_probability", "dry_multiplier", "top_a"), is_off),
    **dict.fromkeys(("eta_cutoff", "epsilon_cutoff", "smoothing_factor", "dynatemp_range", "penalty_alpha"), is_off),
    **dict.fromkeys(("dynamic_temperature", "no_repeat_ngram_size", "negative_prompt", "bad_words"), is_off),
    **dict.fromkeys(("logits_processors", "logits_processor", "custom_logit_processor", "samplers"), is_off),
    **dict.fromkeys(("allowed_token_ids", "bad_words_ids", "suppress_tokens", "sampler_priority"), is_off),
    "top_n_sigma": is_one_of(-1, -1.0, 0, 0.0),
    "random_seed": _NEVER,
    # Which weights, and what the model is given.
    **dict.fromkeys(("lora", "lora_name", "lora_path", "lora_request", "adapter", "adapter_id"), is_off),
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "continue_final_message", "documents"), is_off),
    **dict.fromkeys(("prompt_embeds", "input_embeds", "image_data", "audio_data", "video_data"), is_off),
    "add_generation_prompt": is_one_of(True),
    **dict.fromkeys(("input_ids", "prompt_mode", "task", "translation_options", "prompt_truncate_len"), is_off),
    **dict.fromkeys(("mm_processor_kwargs", "media_io_kwargs", "images_config", "video_config"), is_off),
    **dict.fromkeys(("max_dynamic_patch", "min_dynamic_patch", "use_audio_in_video"), is_off),
    **dict.fromkeys(("vl_high_resolution_images", "image_config", "transforms"), is_off),
    "context_length_exceeded_behavior": is_one_of("error"),
    # Reasoning, where a request has other fields for it or none.
    "enable_thinking": is_one_of(False),
    "thinking": is_one_of(False, {"type": "disabled"}, {"type": "adaptive"}),
    "reasoning_effort": is_one_of("none", "minimal"),
    "reasoning": is_one_of({}, {"effort": "none"}, {"effort": "minimal"}),
    **dict.fromkeys(("include_reasoning", "separate_reasoning", "stream_reasoning"), is_one_of(True)),
    **dict.fromkeys(("thinking_budget", "thinking_token_budget", "reasoning_budget", "reasoning_format"), is_off),
    "verbosity": is_one_of("medium"),
    # What the answer shows.
    **dict.fromkeys(("return_token_ids", "return_tokens_as_token_ids", "return_hidden_states"), is_off),
    **dict.fromkeys(("return_logprob", "top_logprobs_num", "n_probs"), is_off),
    **dict.fromkeys(("logprob_token_ids", "top_prompt_logprobs", "sampling_logprobs_mode", "return_mm_kwargs"), is_off),
    **dict.fromkeys(("return_prompt_text", "return_prompt_token_ids", "return_token_offsets", "raw_output"), is_off),
    **dict.fromkeys(("return_weight_versions", "return_routed_experts", "routed_experts_prompt_start"), is_off),
    **dict.fromkeys(("routed_experts_start_len", "return_sampling_mask", "return_meta_info"), is_off),
    **dict.fromkeys(("return_cached_tokens_details", "return_spec_tokens_details"), is_off),
    **dict.fromkeys(("return_input_ids_in_sglext", "return_output_ids_in_sglext"), is_off),
    **dict.fromkeys(("return_flat_raw_output_top_logprobs", "post_sampling_probs", "response_fields"), is_off),
    "mm_payload": is_one_of("tensors"),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens"), is_one_of(True)),
    "stream_interval": is_one_of(1),
    # What else is done with the request: other checks, searches, models and places.
    **dict.fromkeys(
        ("moderation", "guardrails", "safe_prompt", "safety_model", "safety_settings", "compliance"), is_off
    ),
    **dict.fromkeys(("web_search", "enable_search", "enable_code_interpreter"), is_off),
    **dict.fromkeys(("search_settings", "search_options", "plugins", "connectors", "citation_options"), is_off),
    "web_search_options": _NEVER,
    "search_parameters": is_one_of({}, {"mode": "off"}),
    **dict.fromkeys(("deferred_tools", "stop_server_tools_when", "debug", "preset", "provider", "models"), is_off),
    **dict.fromkeys(
        ("priority", "cache_salt", "extra_key", "custom_labels", "session_params", "custom_params"), is_off
    ),
    **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "vllm_xargs"), is_off),
    **dict.fromkeys(("bootstrap_host", "bootstrap_port", "bootstrap_room"), is_off),
    **dict.fromkeys(("data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank"), _NEVER),  # 0 is one of them
    **dict.fromkeys(("watermark", "watermarking"), is_off),
    # Of responses, which have them as their own.
    **dict.fromkeys(("input", "instructions", "previous_response_id", "conversation", "text", "include"), is_off),
    **dict.fromkeys(("previous_input_messages", "enable_response_messages", "background"), is_off),
    **dict.fromkeys(("max_output_tokens", "max_tool_calls"), _NEVER),
    # Fields of other APIs that have others inside.
    **dict.fromkeys(("options", "parameters", "sampling_params", "generation_config", "extra_body"), is_off),
}

_CHECKS = "send the text to /v1/moderations, or set a policy"
_SEARCHES = "the server searches in vector stores alone, see `retrieval` of chats; a tool of yours may search the web"

INSTEAD: Mapping[str, str] = {
    "n": "send one request for each answer",
    "best_of": "send one request for each answer",
    "truncate_prompt_tokens": "send `truncation`",
    **dict.fromkeys(("regex", "guided_regex"), "send `structured_outputs.regex`"),
    **dict.fromkeys(("ebnf", "grammar"), "send `structured_outputs.grammar`, in Lark"),
    **dict.fromkeys(("json_schema", "format", "json_object", "guided_json_object"), "send `response_format`"),
    **dict.fromkeys(("structural_tag", "guided_structural_tag"), "send `tools`"),
    **dict.fromkeys(("stop_regex", "stop_strings", "stop_sequences", "stop_words"), "send `stop`"),
    **dict.fromkeys(("max_new_tokens", "max_gen_len", "max_length", "num_predict", "n_predict"), "send `max_tokens`"),
    "max_output_tokens": "send `max_tokens`",
    "instructions": "send them in a message of the system",
    **dict.fromkeys(("previous_response_id", "conversation"), "no conversation is held here, send all of its messages"),
    "text": "send `response_format`",
    "background": "send the request to /v1/jobs or /v1/responses",
    **dict.fromkeys(("min_new_tokens", "min_length"), "send `min_tokens`"),
    "repeat_penalty": "send `repetition_penalty`",
    "random_seed": "send `seed`",
    **dict.fromkeys(("prompt_truncate_len", "context_length_exceeded_behavior", "transforms"), "send `truncation`"),
    **dict.fromkeys(("moderation", "guardrails", "safe_prompt", "safety_model", "safety_settings"), _CHECKS),
    **dict.fromkeys(("web_search", "web_search_options", "enable_search", "plugins", "connectors"), _SEARCHES),
    **dict.fromkeys(("search_parameters", "search_settings", "search_options"), _SEARCHES),
    "models": "send one `model`",
    "priority": INSTEAD_OF_PRIORITY,
    "cache_salt": INSTEAD_OF_CACHE_SALT,
    "custom_labels": "send `metadata`",
    "input_ids": "send token ids as the `prompt` of text completions",
    "return_prompt_token_ids": "send the request to /v1/tokenize",
    **dict.fromkeys(("suppress_tokens", "bad_words_ids"), "send `bad_words`, or `logit_bias` with -100 for a token"),
    **dict.fromkeys(("thinking", "enable_thinking", "reasoning_effort"), "send `reasoning_effort` to chat completions"),
    **dict.fromkeys(("thinking_token_budget", "reasoning_budget"), "send `reasoning.max_tokens`"),
    **dict.fromkeys(("return_logprob", "top_logprobs_num", "n_probs"), "send `logprobs`"),
    **dict.fromkeys(("lora", "lora_name", "lora_path", "lora_request", "adapter", "adapter_id"), "name a `model`"),
    **dict.fromkeys(
        ("options", "parameters", "sampling_params", "generation_config", "extra_body"),
        "send its fields beside `model`",
    ),
    "functions": "it is deprecated, give `tools` instead",
    "function_call": "it is deprecated, give `tool_choice` and `tools` instead",
}


INSTEAD_OF_FILES = (
    "send an image as an image, and of a document its text; or upload the document, and search it in a vector store"
)
"""What to send instead of a file inside a conversation."""


def not_text(where: str, kind: str, known: str) -> InvalidRequest:
    """Return the error for a part of a conversation that is no text. ``kind``: its type. ``known``: what is taken."""
    instead = "; images stand in messages of the user" if "image" in kind else ""
    if kind in ("file", "input_file", "document"):
        instead = f"; {INSTEAD_OF_FILES}"
    return unsupported(f"`{where}` {kind[:40]!r} is not supported: {known}{instead}", where)
