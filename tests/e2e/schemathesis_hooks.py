"""Hooks for Schemathesis in addition to the OpenAPI document; loaded by name from the configuration."""

from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode, HookContext

_MODELS = {"/v1/embeddings": "fake-encoder", "/v1/moderations": "fake-classifier"}


@schemathesis.hook
def before_call(_context: HookContext, case: Case, _kwargs: dict[str, Any]) -> None:
    """Use the existing model: an unknown name would end the request before its other fields are checked."""
    is_good = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    if is_good and isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = _MODELS.get(case.operation.path, "fake")
    if isinstance(case.body, dict) and case.body.get("require_worker") is True:
        case.body["require_worker"] = False  # a version without a worker is 503, and that is no fault of the server
