"""Texts of the OpenAPI document: descriptions of fields and parameters, and example bodies.

A description in the model itself goes first. This file has the fields that many models share, and those of OpenAI. A
test fails for a field of a request or a parameter without a description, a body without an example, and a text that no
model uses. A field of an answer has a text if it says more than the name.
"""

from typing import Any

# By the name of the field, or by ``Model.field`` where one model needs another text.
FIELDS: dict[str, str] = {
    "action": "what to do with a match: block, mask, redact or flag",
    "after_hash": "SHA-256 of the resource after the change; null if it was deleted",
    "aliases": "aliases and the version that each means",
    "anchor": "the event from which the seconds are counted",
    "api_key_id": "the key of the jobs; null unless grouped by it",
    "arguments": "the call's arguments, as JSON text",
    "background": "answer immediately; the response is read later",
    "bad_words": "up to 64 texts whose tokens are never sampled in a row, with a space before them and without",
    "batch": "true for lines of batches; null unless grouped by it",
    "call_id": "the id of the tool call",
    "cancel": "POST here to cancel it",
    "chain": "position in the organization's hash chain",
    "code": "the error code",
    "completed": "lines with an answer",
    "chat_template_kwargs": "more variables for the model's chat template, such as `enable_thinking`",
    "completion_window": "how long the batch may take, such as `24h`",
    "compute_ms": "time in the engine",
    "content": "the text; null if there are tool calls",
    "currency": "currency of the prices, as set by the operator",
    "deadline_ms": "longest time from acceptance to the answer",
    "deny": "own words and patterns to search for",
    "description": "what it is for; part of the model's prompt",
    "dimensions": "length of each vector; shorter than the model's only if the model was trained for that",
    "document": "the policy",
    "echo": "the output has the prompt too, with the log probability of each token if `logprobs` is set",
    "effort": "how much the model reasons before it answers; none: not at all; minimal: as little as it can",
    "embedding": "the vector, as numbers or as base64",
    "encoding_format": "format of vectors: numbers, or base64 of little-endian float32",
    "endpoint": "the route of each line's request",
    "epoch": "number of this claim of the job",
    "events": "which events are sent; see docs/webhooks.md",
    "filename": "the file's name, as it was uploaded",
    "flagged": "matches of policy rules that did not block the input",
    "format": "text, any JSON object, or JSON that matches a schema",
    "frequency_penalty": "from -2 to 2; above 0: frequent tokens become less likely",
    "function": "the function",
    "grammar": "constraint on the answer",
    "hash": "SHA-256 of the entry and of the one before it",
    "id": "its id",
    "ignore_eos": "continue after the end token, until `max_tokens`",
    "include": "additional parts of the answer",
    "include_usage": "end the stream with the token counts",
    "input": "the model's input",
    "input_cached_tokens": "of the input tokens, those found in a prefix cache",
    "input_file_id": "the uploaded file with one request per line",
    "input_tokens_per_minute": "prompt tokens of accepted requests per minute",
    "inside_words": "also match a phrase inside a longer word",
    "instructions": "the system message before the input",
    "job": "options that OpenAI's API lacks: priority, deadline, attempts, webhook, behaviour on disconnect",
    "json_schema": "the schema of the answer",
    "kind": "the kind",
    "kinds": "built-in recognisers to use; see docs/policy.md",
    "last_id": "the last entry's id; `after` of the next page; null on an empty page",
    "limit": "highest number of entries",
    "limits": "the limits; null: no limit",
    "live_batches": "batches that have not ended",
    "logit_bias": "added to the logits of tokens, by their ids as texts; from -100 (never) to 100",
    "logprobs": "log probability of each token; null unless requested",
    "max_attempts": "attempts before the job fails for good",
    "max_completion_tokens": "most tokens of the answer; wins over `max_tokens`",
    "max_output_tokens": "most tokens of the answer",
    "max_tokens": "most tokens of the answer; default: the rest of the context window, at most 1,024",
    "messages": "the conversation, oldest first",
    "metadata": "up to 16 key-value texts of your own; returned with it and usable as a filter",
    "min_p": "leave out tokens with less than this share of the most likely token's probability; 0 is off",
    "min_tokens": "no end token before this many tokens; 0 is off",
    "model": "the model: `name`, `name@alias` or `name@3`",
    "name": "the name",
    "next_page": "`page` of the next page; null on the last",
    "on_disconnect": "what happens to the job when its client disconnects",
    "optional": "true: a model that cannot do what is asked does what it can",
    "output": "the output; null before the end",
    "output_expires_after": "how long the batch's result files are kept",
    "parallel_tool_calls": "false: at most one tool call per answer; true: also several if `tool_choice` is `required`",
    "parameters": "the arguments, as a JSON schema",
    "phrases": "words and phrases; case and spacing do not matter",
    "position": "position in the queue, from 1; null if not queued or not known",
    "presence_penalty": "from -2 to 2; above 0: tokens that occurred become less likely",
    "prev_hash": "hash of the previous entry",
    "previous_response_id": "the response that this one continues; null if none",
    "priority": "0 (first) to 9 (last), within the service class",
    "project_id": "the `OpenAI-Project` of the jobs; null unless grouped by it",
    "prompt": "the text to continue",
    "prompts": "several texts to continue, or token ids of several",
    "prompt_cache_key": "accepted and returned; the prefix cache does not need it",
    "purpose": "purpose of the file",
    "queue": "the queue, named after its model version",
    "queue_ms": "time from acceptance to start",
    "queued_tokens": "prompt and `max_tokens` of all queued jobs",
    "reasoning": "how much the model reasons before it answers",
    "reasoning_content": "the reasoning before an answer of the assistant; most chat templates leave it out",
    "redacted_value": "the first characters of the key",
    "refusal": "a refusal is normal text: null in answers; in a request it is the text of an assistant that refused",
    "repetition_penalty": "above 1: tokens of the prompt and the answer become less likely; 1 is off",
    "requests_per_minute": "requests per minute",
    "response_format": "format of the answer: text, any JSON object, or JSON that matches a schema",
    "role": "author of the message",
    "rules": "the rules; if several match the same text, the strictest action wins",
    "safety_identifier": "your end user; usage can be grouped by it; wins over `user`",
    "sampling": "sampling parameters",
    "schema": "a JSON schema",
    "scopes": "rights of the key; see docs/keys.md",
    "secret": "the signing secret; shown in full only when it is created",
    "seconds": "seconds after the anchor",
    "seed": "same seed and request: same answer; default: a different seed per job",
    "seq": "number in the chain, from 1",
    "service_class": "which jobs start first if there is a backlog",
    "service_tier": "auto and priority start first, then default, then flex",
    "session": "the command that was used, for actions without a request",
    "stage": "apply to inputs, outputs or both",
    "suffix": "the text after the gap that the model fills; for models with tokens for that",
    "stop": "texts that end the answer; not included in it",
    "stop_token_ids": "token ids that end the answer; not included in it",
    "store": "false: the response cannot be retrieved later",
    "stream": "send the answer as server-sent events while it is generated",
    "stream_options": "options of the stream",
    "strict": "accepted; schemas are always strict",
    "task": "`generate` for text, `embed` for vectors",
    "temperature": "from 0 (greedy) to 2; default: set per model version",
    "text": "the text",
    "texts": "the texts to embed",
    "token_ids": "ids of the model's vocabulary, instead of text",
    "tokens": "number of tokens",
    "tool_call_id": "the call that this message answers",
    "tool_calls": "function calls of the model",
    "tool_choice": "none, auto, required, or a function by its name",
    "tools": "functions that the model may call; the server never runs them",
    "top_k": "sample from this many most likely tokens; 0 is off; default: set per model version",
    "top_logprobs": "number of most likely tokens to return per position",
    "top_p": "sample from the most likely tokens with this total probability; 1 is off; default: set per model version",
    "truncation": "what to leave out if the input is too long: oldest_turns (auto), left, middle, refuse (disabled)",
    "type": "the type",
    "url": "the target URL: https, with a public address",
    "user": "your end user; usage can be grouped by it",
    "user_id": "the `user` of the jobs; null unless grouped by it",
    "variables": "the template's variables",
    "version": "version number, from 1",
    "webhook": "URL that receives the job's events, in addition to the tenant's endpoints",
    "Amount.value": "the amount, as a decimal number",
    "AttemptObject.attempt": "number of the charged attempt, from 1; null if it was not charged",
    "CompletionsResult.service_tier": "null unless grouped by it",
    "DenyList.patterns": "regular expressions (RE2 syntax) with a bounded match length",
    "IssuedKeyObject.value": "the key itself, shown only once",
    "JobObject.attempt": "number of charged attempts",
    "StepObject.attempt": "number of charged attempts",
    "JobObject.error": "`code`, `message` and `attempt` of a failure; null otherwise",
    "JobObject.expires_at": "its deadline, Unix seconds",
    "JobObject.output": "`text` and `finish_reason`, or vectors; null before the end and after the retention time",
    "Links.events": "URL of its stream of server-sent events",
    "NewPrompt.name": "a display name",
    "RotatedKeyObject.value": "the key itself, shown only once",
    "PolicyObject.model": "name of the model; null: all models without their own policy",
    "PolicyPut.model": "name of the model; null: all models without their own policy",
    "Rule.id": "your name of the rule, used in answers and the audit log",
    "Sampling.logprobs": "return log probabilities, with this many most likely tokens per position",
    "ChatRequest.logprobs": "return log probabilities of the tokens",
    "ResponseRequest.conversation": "a conversation: its items come before the input, and what is new is added to it",
    "ResponseRequest.input": "a text, or messages and items of an earlier conversation",
    "ResponseRequest.prompt": "a stored template and the values of its variables",
    "ResponseRequest.text": "format of the answer's text",
}

# By parameter name.
PARAMETERS: dict[str, str] = {
    "batch_id": "the batch",
    "bucket_width": "width of a bucket",
    "code": "only this error code",
    "completion_id": "the stored chat completion",
    "conversation_id": "the conversation",
    "delivery_id": "the delivery",
    "endpoint_id": "the webhook endpoint",
    "file_id": "the file",
    "item_id": "the item",
    "job_id": "the job",
    "video_id": "the video",
    "key_id": "the API key",
    "limit": "most entries per page",
    "model": "the model: `name`, `name@alias` or `name@3`",
    "name": "the queue, named after its model version",
    "order": "newest first (desc) or oldest first (asc)",
    "prompt_id": "the prompt",
    "purpose": "only files for this purpose",
    "queue": "only this queue",
    "replayed": "only replayed ones, or only the others",
    "response_id": "the response",
    "status": "only this state",
    "task": "only this task",
    "upload_id": "the upload",
}

# Example bodies of models without their own examples.
EXAMPLES: dict[str, Any] = {
    "post /v1/dead_letters/replay": {"queue": "smollm2@1", "limit": 10},
    "put /v1/prompts/{prompt_id}/aliases/{alias}": {"version": 2},
    "post /v1/prompts/{prompt_id}/render": {"model": "smollm2", "variables": {"city": "Rome"}},
    "put /v1/pipelines/{pipeline_id}/aliases/{alias}": {"version": 1, "canary": {"version": 2, "percent": 10}},
    "put /v1/policies": {
        "document": {"version": 1, "rules": [{"id": "mail", "action": "mask", "stage": "both", "kinds": ["email"]}]}
    },
    "post /v1/webhook_endpoints": {"url": "https://example.com/hooks/headrace", "events": ["job.succeeded"]},
    "patch /v1/webhook_endpoints/{endpoint_id}": {"events": ["job.succeeded", "job.failed"]},
    "post /v1/webhook_endpoints/{endpoint_id}/rotate_secret": {"overlap_s": 3600},
    "post /v1/webhook_secret/rotate": {"overlap_s": 3600},
    "post /v1/organization/api_keys": {"name": "nightly report", "scopes": ["jobs:read", "jobs:write"]},
    "patch /v1/organization/api_keys/{key_id}": {"name": "weekly report"},
    "post /v1/organization/api_keys/{key_id}/rotate": {"overlap_s": 3600},
    "post /v1/files": {"file": "requests.jsonl", "purpose": "batch"},
    "post /v1/uploads/{upload_id}/parts": {"data": "the bytes of the part"},
}


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """Fill the texts into an OpenAPI document and return it."""
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        for field, about in schema.get("properties", {}).items():
            if (words := words_of(name, field, about)) is not None:
                about.setdefault("description", words)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _describe_operation(f"{method} {path}", operation)
    return document


def words_of(schema: str, field: str, about: dict[str, Any]) -> str | None:
    """Return the description of a field of a schema, None if this file has none."""
    if "const" in about:
        return f"always `{about['const']}`"
    # The schemas of two models with one name have their modules in front.
    model = schema.rpartition("__")[2]
    words = FIELDS.get(f"{model}.{field}", FIELDS.get(field))
    return "Unix seconds; null: not, or not yet" if words is None and field.endswith("_at") else words


def _describe_operation(name: str, operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in PARAMETERS:
            parameter.setdefault("description", PARAMETERS[parameter["name"]])
    if name in EXAMPLES:
        for content in operation["requestBody"]["content"].values():
            content.setdefault("example", EXAMPLES[name])
