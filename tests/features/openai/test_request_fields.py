"""Fields that no face knows: a slip of the pen is refused, what clients send beside passes."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel, ConfigDict

from headrace.features.encoders.foreign_encoding import FOREIGN_ENCODING
from headrace.features.openai import foreign_fields
from headrace.features.openai.chat_request import ChatRequest
from headrace.features.openai.completion_request import CompletionRequest
from headrace.features.openai.request_fields import TextRequest, as_sent
from headrace.producer_api.http import job_options
from headrace.producer_api.http.job_options import MOST_UNKNOWN
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.jobs import jobs
from tests.cases import some_of
from tests.producer_api.calling import CHAT, error_of
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.refusals import Naming

BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "hello"},
    "/v1/responses": {"model": "tiny", "input": "hello"},
    "/v1/embeddings": {"model": "org/vectors", "input": "hello"},
}
SLIPS = [
    ("/v1/chat/completions", "max_token", 3, "max_tokens"),
    ("/v1/chat/completions", "maxTokens", 3, "max_tokens"),
    ("/v1/chat/completions", "temprature", 0, "temperature"),
    ("/v1/completions", "stops", ["x"], "stop"),
    ("/v1/responses", "max_output_token", 3, "max_output_tokens"),
    ("/v1/responses", "previous_response", "resp_1", "previous_response_id"),
    ("/v1/embeddings", "dimension", 8, "dimensions"),
]
# What OpenAI's, vLLM's and others' clients send of their own accord, and what changes no answer here.
BESIDE = {
    "store": True,
    "reasoning_effort": None,
    "verbosity": "medium",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "skip_special_tokens": True,
    "add_special_tokens": False,
    "request_id": "r",
    "user_id": "u",
    "session_id": "s",
    "usage": {"include": True},
    "transforms": [],
    "provider": {},
    "max_token": None,
    # Off, in the words of other servers.
    "min_p": 0,
    "top_k": -1,
    "mirostat": 0,
    "repeat_penalty": 1.0,
    "n_predict": -1,
    "stop_regex": "",
    "lora_path": None,
    "chat_template_kwargs": {},
    "return_token_ids": False,
    "priority": 0,
    "models": [],
    "search_parameters": {"mode": "off"},
}
FOREIGN: dict[str, object] = {
    "regex": "a+",
    "ebnf": 'root ::= "a"',
    "json_schema": {"type": "object"},
    "structural_tag": {"triggers": []},
    "stop_regex": "a",
    "stop_sequences": ["a"],
    "max_new_tokens": 3,
    "n_predict": 3,
    "repeat_penalty": 1.1,
    "mirostat": 2,
    "xtc_probability": 0.5,
    "typical_p": 0.5,
    "lora": "x",
    "lora_path": "x",
    "continue_final_message": True,
    "skip_special_tokens": False,
    "options": {"temperature": 0},
    "sampling_params": {"temperature": 0},
    "extra_body": {"top_k": 1},
    "return_token_ids": True,
    "n_probs": 1,
    "allowed_token_ids": [1],
    "logits_processors": ["x"],
    # What is asked for beside the answer.
    "moderation": {"model": "omni-moderation-latest"},
    "web_search": True,
    "web_search_options": {},
    "plugins": [{"id": "web"}],
    "models": ["a", "b"],
    "priority": 1,
    "cache_salt": "s",
    "logprob_token_ids": [1],
    "kv_transfer_params": {"do_remote_decode": True},
    "data_parallel_rank": 0,
}


@some_of(2, ("path", "field", "value", "meant"), SLIPS)
def test_a_slip_of_the_pen_is_refused_with_what_was_meant(
    api: httpx2.Client, encoder: object, path: str, field: str, value: Any, meant: str
) -> None:
    refused = api.post(path, json=BODIES[path] | {field: value})
    error = error_of(refused)
    assert (refused.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", field)
    assert error["message"] == Naming(f"`{field}`", f"`{meant}`")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_what_other_servers_call_things_is_refused_with_what_to_send(api: httpx2.Client, path: str) -> None:
    others = {"chat_template_kwargs": {"a": 1}} if path == "/v1/completions" else {"echo": True, "suffix": "x"}
    of_responses = {"previous_response_id": "resp_0", "instructions": "Be brief.", "max_output_tokens": 3}
    others |= {} if path == "/v1/responses" else of_responses
    for field, value in (FOREIGN | others).items():
        error = error_of(api.post(path, json=BODIES[path] | {field: value}))
        assert (error["code"], error["param"]) == ("unsupported_parameter", field)
        assert f"`{field}`" in error["message"]
    for field in ("guided_json", "guided_choice", "ignore_eos") if path == "/v1/responses" else ():
        error = error_of(api.post(path, json=BODIES[path] | {field: True}))
        assert (error["code"], error["param"]) == ("unsupported_parameter", field)


def test_fields_for_vectors_in_the_words_of_other_servers(api: httpx2.Client, encoder: object) -> None:
    foreign: dict[str, object] = {
        "normalize": True,
        "input_type": "query",
        "truncate_prompt_tokens": 8,
        "output_dimension": 8,
        "embedding_types": ["int8"],
        "lora": "x",
        "options": {"a": 1},
    }
    for field, value in foreign.items():
        error = error_of(api.post("/v1/embeddings", json=BODIES["/v1/embeddings"] | {field: value}))
        assert (error["code"], error["param"]) == ("unsupported_parameter", field)
    # It got past the fields.
    beside = {"embedding_types": ["float"], "add_special_tokens": True, "input_type": None, "metadata": {"n": 1}}
    error = error_of(api.post("/v1/embeddings", json=BODIES["/v1/embeddings"] | beside | {"input": []}))
    assert error["param"] == "input"


def test_metadata_may_be_numbers_and_booleans(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    metadata = {"run": 7, "share": 0.5, "is_test": True, "name": "x"}
    with worker.serve(lambda _: ("hi",)):
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
            assert api.post(path, json=BODIES[path] | {"metadata": metadata}).status_code == 200
            assert api.post(path, json=BODIES[path] | {"metadata": {"x": [1]}}).status_code == 400
    expected = {"run": "7", "share": "0.5", "is_test": "true", "name": "x"}
    assert [job.metadata for job in jobs.list_jobs(db, tenant)] == [expected] * 3


def test_what_clients_send_beside_passes(api: httpx2.Client, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _: ("hi",)):
        assert api.post("/v1/chat/completions", json=CHAT | BESIDE).status_code == 200
    many = {f"unknown {number}": number for number in range(MOST_UNKNOWN + 1)}
    refused = api.post("/v1/chat/completions", json=CHAT | many)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "invalid_value")


TEXT_NAMES = {
    "sampling.temperature": "temperature",
    "sampling.grammar.text": "response_format",
    "sampling": "min_tokens",
    "priority": "job.priority",
    "webhook.url": "job.webhook.url",
    "user": "user",
}
CHAT_NAMES = {
    "sampling.max_tokens": "max_tokens",
    "max_tokens": "max_tokens",
    "input": "messages",
    "input.messages[0].content": "messages[0].content",
    "input.template.variables.city": "prompt.variables.city",
    "input.reasoning.effort": "reasoning",
    "input.reasoning.max_tokens": "reasoning",
}
SENT: list[tuple[TextRequest, dict[str, str]]] = [
    (ChatRequest.model_validate(CHAT), TEXT_NAMES | CHAT_NAMES),
    (
        ChatRequest.model_validate(
            CHAT | {"max_completion_tokens": 5, "ignore_eos": True, "guided_regex": "a", "reasoning_effort": "low"}
        ),
        {
            "sampling.max_tokens": "max_completion_tokens",
            "sampling": "ignore_eos",
            "sampling.grammar": "guided_regex",
            "input.reasoning.effort": "reasoning_effort",
            "input.reasoning.max_tokens": "reasoning",
        },
    ),
    (
        ChatRequest.model_validate(CHAT | {"structured_outputs": {"regex": "a"}, "reasoning": {"effort": "low"}}),
        {
            "sampling.grammar": "structured_outputs",
            "input.reasoning.effort": "reasoning.effort",
            "input.reasoning.max_tokens": "reasoning.max_tokens",
        },
    ),
    (
        CompletionRequest.model_validate({"model": "m", "prompt": "x"}),
        TEXT_NAMES
        | {
            "max_tokens": "max_tokens",
            "input": "prompt",
            "input.token_ids": "prompt",
            "input.prompts[1]": "prompt[1]",
            "input.prompts[1].token_ids": "prompt[1].token_ids",
        },
    ),
]


@pytest.mark.parametrize(("request_sent", "names"), SENT)
def test_an_error_of_the_job_names_the_field_that_was_sent(request_sent: TextRequest, names: dict[str, str]) -> None:
    for param, name in names.items():
        error = as_sent(InvalidRequest(f"`{param}` is wrong", param=param), request_sent)
        assert (error.param, error.message) == (name, f"`{name}` is wrong")
    assert as_sent(InvalidRequest("all wrong"), request_sent).param is None


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


def harmless(table: Mapping[str, job_options.IsHarmless]) -> dict[str, set[str]]:
    """The fields of a table by the probes that they accept beside null, which each of them accepts."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for field in table:
        accepted = []
        for name, value in PROBES.items():
            try:
                job_options.refuse_unsupported(Sent.model_validate({field: value}), table, {field: "do"})
            except InvalidRequest as error:
                told = (error.code, error.param, error.message)
                assert told == ("unsupported_parameter", field, Naming(f"`{field}`"))
            else:
                accepted.append(name.replace(" ", "-"))
        assert accepted.pop(0) == "null"
        found[" ".join(accepted)].add(field)
    return dict(found)


def fields(*names: str) -> set[str]:
    return {one for name in names for one in name.split()}


def test_a_field_for_a_text_passes_with_a_value_that_means_nothing() -> None:
    assert harmless(foreign_fields.FOREIGN) == {
        "one one-point-zero": fields(
            "n best_of num_beams num_return_sequences typical_p typical length_penalty tfs_z tfs repeat_penalty",
            "encoder_repetition_penalty guidance_scale repetition_penalty_range",
        ),
        "one": {"stream_interval"},
        "": fields(
            "truncate_prompt_tokens retrieval server_tools max_new_tokens max_gen_len max_length num_predict",
            "random_seed context_length_exceeded_behavior mm_payload web_search_options data_parallel_rank",
            "routed_dp_rank disagg_prefill_dp_rank max_output_tokens max_tool_calls",
        ),
        "no-fields": {"search_parameters"},
        "minus-one": {"n_predict"},
        "zero minus-one": {"top_n_sigma"},
        "true": fields(
            "add_generation_prompt include_reasoning separate_reasoning stream_reasoning skip_special_tokens",
            "spaces_between_special_tokens",
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
            "input_ids prompt_mode task translation_options prompt_truncate_len mm_processor_kwargs media_io_kwargs",
            "images_config video_config max_dynamic_patch min_dynamic_patch use_audio_in_video",
            "vl_high_resolution_images image_config transforms logprob_token_ids top_prompt_logprobs",
            "sampling_logprobs_mode return_mm_kwargs return_prompt_text return_prompt_token_ids return_token_offsets",
            "raw_output return_weight_versions return_routed_experts routed_experts_prompt_start",
            "routed_experts_start_len return_sampling_mask return_meta_info return_cached_tokens_details",
            "return_spec_tokens_details return_input_ids_in_sglext return_output_ids_in_sglext",
            "return_flat_raw_output_top_logprobs post_sampling_probs response_fields moderation guardrails safe_prompt",
            "safety_model safety_settings compliance web_search enable_search enable_code_interpreter search_settings",
            "search_options plugins connectors citation_options deferred_tools stop_server_tools_when debug preset",
            "provider models priority cache_salt extra_key custom_labels session_params custom_params",
            "kv_transfer_params ec_transfer_params vllm_xargs bootstrap_host bootstrap_port bootstrap_room watermark",
            "watermarking repetition_detection early_stopping t_max_predict_ms n_indent input instructions background",
            "previous_response_id conversation text include previous_input_messages enable_response_messages",
        ),
    }


def test_a_field_for_vectors_passes_with_a_value_that_means_nothing() -> None:
    assert harmless(FOREIGN_ENCODING) == {
        OFF: fields(
            "prompt_name instruction input_type task task_type title prefix messages prompt chat_template",
            "chat_template_kwargs images content lora lora_name lora_request adapter adapter_id late_chunking",
            "rank_fields options parameters extra_body mm_processor_kwargs media_io_kwargs late_chunking_params",
            "embed_overrides priority cache_salt",
        ),
        "": fields(
            "truncate_prompt_tokens max_chunks_per_doc max_tokens_per_doc max_length normalize pooling pooling_type",
            "use_activation activation softmax output_dimension output_dimensionality dims raw_scores",
            "max_tokens_per_query truncation_side",
        ),
        "right Right": {"truncation_direction"},
        "false": {"padding"},
        "true": {"add_special_tokens"},
        "float one-float": fields("embedding_types embedding_type"),
        "float float32": fields("embed_dtype output_dtype"),
        "native little": {"endianness"},
    }
