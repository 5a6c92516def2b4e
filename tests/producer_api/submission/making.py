"""A version, a caller and a draft of a job, for tests of submissions without services."""

from datetime import UTC, datetime
from typing import Any

from headrace.producer_api.submission.draft_job import DraftJob, Origin
from headrace.store.errors import HeadraceError
from headrace.store.registry.models import ModelVersion
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tenants.api_keys import Principal
from tests.refusals import refusal

AT = datetime(2026, 11, 29, tzinfo=UTC)
VERSION = ModelVersion("tiny", 1, "generate", "fake", "fake:tiny", "0" * 64, "float32", 512, {}, AT, None)
PRINCIPAL = Principal("acme", "key_1", frozenset())


def told(error: object) -> tuple[type, str, str, str | None]:
    assert isinstance(error, HeadraceError)
    return type(error), error.message, error.code, error.param


def refused(call: Any, *arguments: Any, **named: Any) -> tuple[type, str, str | None]:
    """Return the kind, the message and the parameter of the error that a call raises."""
    kind, message, _, param = refusal(call, *arguments, **named)
    return kind, message, param


def draft(text: str = "hi", **origin: Any) -> DraftJob:
    request = GenerateRequest.model_validate({"model": "tiny", "input": {"prompt": text}})
    given = {"route": "POST /v1/jobs", "idempotency_key": None, "fingerprint": "", "is_retry": False, "num_bytes": 1}
    return DraftJob(PRINCIPAL, request, Origin(**given | origin))
