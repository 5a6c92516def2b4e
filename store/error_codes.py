"""All public error codes and their meanings. Codes are public: none is renamed or reused.

The class of an error (``store.errors``) gives its HTTP status, in the table of ``producer_api.server.errors``. A code
that stands in the source and not here, or here and not in the source, fails ``tests/store/test_error_codes.py``.
"""

from collections.abc import Mapping
from typing import Final

REQUEST_CODES: Final[Mapping[str, str]] = {
    "alias_changed": "the alias names another version than If-Match says",
    "alias_not_found": "the model has no alias of this name",
    "approval_decided": "the call was approved or refused before, its time limit is over, or its job has ended",
    "audio_empty": "the audio is 0 seconds long",
    "audio_too_long": "the audio is longer than is accepted",
    "audio_truncated": "part of the audio file is missing or damaged",
    "batch_not_cancellable": "the batch has ended or is writing its results",
    "conflict": "the state of the resource does not allow the operation",
    "context_length_exceeded": "the input does not fit into the model's context window",
    "conversation_too_long": "the conversation has too many items or bytes",
    "database_unavailable": "Postgres does not answer, or its schema is not up to date",
    "deadline_unreachable": "the job cannot start, or cannot end, before its deadline",
    "draining": "the API process is shutting down",
    "encryption_key_missing": "the process lacks the key of an encrypted value",
    "encryption_value_invalid": "an encrypted value was changed or moved",
    "endpoint_disabled": "the webhook endpoint is disabled",
    "expiry_not_allowed": "the new key would live longer than the key that creates it",
    "headers_too_large": "URL and headers of the request are too long",
    "idempotency_key_reused": "the Idempotency-Key was used with another body",
    "insufficient_scope": "the key lacks the scope of the route",
    "internal_error": "a defect of Headrace; the log has the details under the request id",
    "invalid_api_key": "there is no key, or it is unknown, revoked or expired",
    "invalid_image": "an image is no PNG, JPEG, WebP or GIF file, is damaged or too large, or its URL is not allowed",
    "invalid_json_schema": "the JSON schema or grammar is malformed or not supported",
    "invalid_payload": "a stored payload cannot be read",
    "invalid_value": "a field is malformed or out of range",
    "job_not_cancellable": "the job has ended",
    "job_not_ended": "the job or its batch has not ended, so it cannot be deleted",
    "key_rotated": "the key was rotated before",
    "last_admin_key": "the tenant would have no admin key",
    "list_timeout": "the list was not read in time",
    "method_not_allowed": "the path does not have this method",
    "model_not_allowed": "the key may not use the model",
    "model_not_found": "the model or its version does not exist",
    "model_rejected": "the model version has failed its verification, so no worker runs it",
    "no_capacity": "Headrace cannot accept work at the moment",
    "no_worker": "no worker serves the model version",
    "not_autoscaled": "no dispatcher decides how many workers the queue should have",
    "not_found": "the resource or the route does not exist",
    "policy_blocked_input": "a rule of the tenant's policy refuses the input",
    "policy_scan_too_long": "the policy's scan of a text exceeded its time limit",
    "precondition_failed": "the resource is not in the state that a header expects",
    "previous_response_not_found": "the previous response does not exist",
    "queue_full": "the limit of queued tokens or jobs is reached",
    "quality_below_bound": "the quality report of the model version is outside the bound of its model",
    "quota_exceeded": "the limit of cost or of stored bytes is reached",
    "rate_limit_exceeded": "a rate limit, or the limit of concurrent jobs, batches or streams, is reached",
    "redis_unavailable": "Redis does not answer",
    "request_timeout": "the request was not received in time",
    "request_too_large": "the body is over the size limit",
    "result_expired": "the retention of the resource is over",
    "rollout_active": "an active rollout divides the alias, or has the version as its candidate",
    "rollout_changed": "the rollout has another revision than If-Match says",
    "rollout_ended": "the rollout has ended",
    "rollout_not_found": "there is no rollout with this id",
    "rollout_not_needed": "the alias names the version already",
    "rotation_in_progress": "the overlap of an earlier rotation has not ended",
    "storage_unavailable": "the blob storage does not answer",
    "sync_timeout": "the job has not ended in the time that the request may wait; it continues",
    "tenant_disabled": "the operator has disabled the tenant",
    "tool_server_failed": "the server of MCP does not answer, or its tools cannot be used",
    "unsupported_audio": "the file is not audio in a format that is read",
    "unsupported_encoding": "the body is compressed in a way that is not accepted",
    "unsupported_parameter": "the field is unknown or not supported",
    "version_in_use": "an alias names the version, or jobs of it are kept",
    "version_not_ready": "no worker has verified the version yet, or it was rejected",
    "version_rolled_back": "a rollout of the version was rolled back",
    "webhook_url_not_allowed": "webhooks and tools may not call the URL",
}
"""Codes of requests."""

BATCH_CODES: Final[Mapping[str, str]] = {
    "batch_cancelled": "the batch was cancelled before the line was done",
    "batch_expired": "the line was not done within the completion window",
    "duplicate_custom_id": "an earlier line has the same custom_id",
    "empty_file": "the input file has no lines",
    "invalid_json_line": "the line is not a JSON object",
    "invalid_method": "the method of the line is not POST",
    "mismatched_url": "the URL of the line is not the endpoint of the batch",
    "missing_required_parameter": "the line lacks a required field",
    "too_many_lines": "the input file has too many lines",
}
"""Codes of batches and their lines, beside those of requests."""

JOB_CODES: Final[Mapping[str, str]] = {
    "call_timed_out": "a call of the job's task took longer than its time limit",
    "cancelled": "the job was cancelled",
    "checkpoint_mismatch": "the model cannot continue from the stored tokens",
    "deadline_exceeded": "the deadline passed before the job was done",
    "engine_error": "the engine could not run the job",
    "invalid_file": "the text of a vector store's file could not be read; the message says why",
    "unsupported_file": "a vector store's file is no text, or no parser for its format is installed",
    "file_gone": "the file of the job was deleted, or has expired, before the job was done",
    "grammar_stuck": "no token of the model can continue the grammar",
    "handed_back": "the attempt went back to the queue for another worker or another time",
    "image_unavailable": "the file or the URL of an image could not be read when the job ran",
    "max_attempts_exceeded": "all attempts failed for reasons outside of the job",
    "numerical_error": "the model's output is not finite: NaN or infinity",
    "out_of_memory": "the worker has not enough memory for the job",
    "poison": "the job ran in several workers that crashed",
    "policy_blocked_output": "a rule of the tenant's policy blocked the output",
    "runner_failed": "the runner of a task of another package failed for the input",
    "too_many_steps": "the steps that a step adds are more than a job may have",
    "worker_lost": "the worker of the attempt crashed or lost its lease",
}
"""Codes of jobs and attempts, beside those of requests."""

PROCESS_CODES: Final[Mapping[str, str]] = {
    "invalid_settings": "a setting is unknown or malformed",
    "model_load_failed": "the model's files are missing, damaged or not supported",
}
"""Codes of processes that do not start."""

ERROR_CODES: Final[Mapping[str, str]] = {**REQUEST_CODES, **BATCH_CODES, **JOB_CODES, **PROCESS_CODES}
"""The meaning of each code."""
