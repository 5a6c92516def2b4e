"""Fields in the words of other servers: a request with a value that has no effect is accepted."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from producer_api.openai.foreign_fields import FOREIGN, FOREIGN_ENCODING, IsHarmless, refuse_unsupported
from store.errors import InvalidRequest


class Sent(BaseModel):
    model_config = ConfigDict(extra="allow")


PROBES: dict[str, Any] = {
    "null": None,
    "zero": 0,
    "one": 1,
    "one point zero": 1.0,
    "minus one": -1,
    "true": True,
    "false": False,
    "nothing": "",
    "no fields": {},
    "none": "none",
    "minimal": "minimal",
    "medium": "medium",
    "disabled": {"type": "disabled"},
    "adaptive": {"type": "adaptive"},
    "without effort": {"effort": "none"},
    "little effort": {"effort": "minimal"},
    "right": "right",
    "Right": "Right",
    "float": "float",
    "one float": ["float"],
    "float32": "float32",
    "native": "native",
    "little": "little",
    "something": "something",
}
OFF = "zero false nothing no-fields"


def harmless(table: Mapping[str, IsHarmless]) -> dict[str, set[str]]:
    """The fields of a table by the probes that they accept beside null, which each of them accepts."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for field in table:
        accepted = []
        for name, value in PROBES.items():
            try:
                refuse_unsupported(Sent.model_validate({field: value}), table, {field: "do"})
            except InvalidRequest as error:
                told = (error.code, error.param, error.message)
                assert told == ("unsupported_parameter", field, f"`{field}` is not supported: do")
            else:
                accepted.append(name.replace(" ", "-"))
        assert accepted.pop(0) == "null"
        found[" ".join(accepted)].add(field)
    return dict(found)


def fields(*names: str) -> set[str]:
    return {one for name in names for one in name.split()}


def test_a_field_for_a_text_passes_with_a_value_that_means_nothing() -> None:
    assert harmless(FOREIGN) == {
        "one one-point-zero": fields(
            "n best_of num_beams num_return_sequences typical_p typical length_penalty tfs_z tfs repeat_penalty",
            "encoder_repetition_penalty guidance_scale repetition_penalty_range",
        ),
        "": fields("truncate_prompt_tokens retrieval server_tools max_new_tokens max_gen_len max_length num_predict"),
        "minus-one": {"n_predict"},
        "zero minus-one": {"top_n_sigma"},
        "true": fields(
            "add_generation_prompt include_reasoning separate_reasoning stream_reasoning skip_special_tokens"
        ),
        "false": {"enable_thinking"},
        "false disabled adaptive": {"thinking"},
        "none minimal": {"reasoning_effort"},
        "no-fields without-effort little-effort": {"reasoning"},
        "medium": {"verbosity"},
        OFF: fields(
            "use_beam_search prompt_logprobs echo return_full_text regex ebnf json_schema structural_tag grammar",
            "json_object guided_json_object guided_whitespace_pattern guided_structural_tag format stop_regex",
            "stop_strings stop_sequences stop_words suffix include_stop_str_in_output no_stop_trim min_length",
            "min_new_tokens mirostat mirostat_mode xtc_probability dry_multiplier top_a eta_cutoff epsilon_cutoff",
            "smoothing_factor dynatemp_range penalty_alpha dynamic_temperature no_repeat_ngram_size negative_prompt",
            "bad_words logits_processors logits_processor custom_logit_processor samplers allowed_token_ids",
            "bad_words_ids suppress_tokens sampler_priority lora lora_name lora_path lora_request adapter adapter_id",
            "chat_template chat_template_kwargs continue_final_message documents prompt_embeds input_embeds image_data",
            "audio_data video_data thinking_budget thinking_token_budget reasoning_budget reasoning_format",
            "return_token_ids return_tokens_as_token_ids return_hidden_states return_logprob top_logprobs_num n_probs",
            "options parameters sampling_params generation_config extra_body",
        ),
    }


def test_a_field_for_vectors_passes_with_a_value_that_means_nothing() -> None:
    assert harmless(FOREIGN_ENCODING) == {
        OFF: fields(
            "prompt_name instruction input_type task task_type title prefix messages prompt chat_template",
            "chat_template_kwargs images content lora lora_name lora_request adapter adapter_id late_chunking",
            "rank_fields options parameters extra_body",
        ),
        "": fields(
            "truncate_prompt_tokens max_chunks_per_doc max_tokens_per_doc max_length normalize pooling pooling_type",
            "use_activation activation softmax output_dimension output_dimensionality dims raw_scores",
        ),
        "right Right": {"truncation_direction"},
        "true": {"add_special_tokens"},
        "float one-float": fields("embedding_types embedding_type"),
        "float float32": fields("embed_dtype output_dtype"),
        "native little": {"endianness"},
    }
