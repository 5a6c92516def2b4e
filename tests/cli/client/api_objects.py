"""Objects of the API, as the answers to the verbs have them."""

from datetime import UTC, datetime
from typing import Any

NOW = datetime.now(UTC).timestamp()
TWO_DAYS = NOW - 2 * 86_400 - 3600  # far from a change of its text, however long the tests run
APPROVAL: dict[str, Any] = {
    "id": "apr_1",
    "job_id": "job_1",
    "tool": "weather",
    "arguments": "{}",
    "status": "pending",
    "expires_at": NOW - 5,
}
DELIVERY: dict[str, Any] = {
    "id": "evt_1",
    "type": "job.failed",
    "job_id": "job_1",
    "batch_id": None,
    "about_endpoint_id": None,
    "registry_id": None,
    "status": "failed",
    "attempts": 2,
    "created_at": TWO_DAYS,
    "last_error": "answered 500",
    "url": "https://a.example/",
    "tries": [],
}
ROLLOUT: dict[str, Any] = {
    "id": "rollout_1",
    "model": "tiny",
    "alias": "default",
    "stable_version": 1,
    "candidate_version": 2,
    "state": "running",
    "percent": 12.5,
    "current_step": 0,
    "steps": [{}, {}, {}],
    "started_at": TWO_DAYS,
    "revision": 4,
    "reason": None,
    "warning": "no worker",
    "checks": [],
}
CHECK = {"name": "error_rate", "decision": "good", "log_e": 1.26, "needed": 3.0, "text": "2 of 9"}
PROMPT: dict[str, Any] = {
    "id": "pt_1",
    "name": "guide",
    "version": 3,
    "digest": "d1",
    "aliases": ["default", "new"],
    "variables": ["city", "days"],
    "instructions": "Be brief.",
    "messages": [{"role": "user", "content": "hi"}],
    "text": None,
    "created_at": TWO_DAYS,
}
STEPS = [{"name": "one", "model": "tiny"}, {"name": "two", "task": "embed", "model": "tiny", "needs": ["one"]}]
PIPELINE: dict[str, Any] = {
    "name": "digest",
    "version": 2,
    "digest": "d2",
    "description": None,
    "aliases": [],
    "canaries": [],
    "input_schema": {"properties": {"text": {}, "tone": {}}},
    "steps": STEPS,
    "created_at": TWO_DAYS,
}
BOUND: dict[str, Any] = {"model": "tiny", "min_agreement": 0.9, "max_kl": None, "max_perplexity_ratio": 1.05}
VERSION: dict[str, Any] = {
    "id": "tiny@2",
    "model": "tiny",
    "version": 2,
    "state": "ready",
    "state_reason": None,
    "aliases": ["default"],
    "base": None,
    "shares_weights": False,
    "engine": "native",
    "dtype": "auto",
    "context_window": 8192,
    "digest": "0123456789abcdef",
    "workers": 1,
    "queued": 3,
    "verification": {"dtype": "float32", "not_measured": "too large"},
    "template": {"id": "pt_1", "name": "guide", "version": 3},
    "quantized_from": None,
    "after_a_loss": None,
}
TOOL: dict[str, Any] = {
    "id": "tool_1",
    "name": "weather",
    "url": None,
    "command": "weather --now",
    "headers": ["X-Key", "X-Way"],
    "timeout_ms": 600,
    "tools": [{"name": "now"}, {"name": "later"}],
}
LETTER = {"id": "job_1", "queue": "q@1", "code": "poison", "crashes": 3, "created_at": TWO_DAYS, "replayed_as": None}
