"""What a failed request means for its job: the code that the caller sees, and whether another attempt may succeed."""

from collections.abc import Iterator

import headrace.models.external.upstream  # noqa: F401 - its errors are errors of an engine
from headrace.models.engine.requests import EngineError


def kinds(kind: type[EngineError] = EngineError) -> Iterator[type[EngineError]]:
    yield kind
    for more in kind.__subclasses__():
        yield from kinds(more)


def test_only_what_may_go_away_is_tried_again() -> None:
    told = {
        (kind.__name__, kind.code, kind.retryable) for kind in kinds() if kind.__module__.startswith("headrace.models.")
    }
    assert told == {
        ("EngineError", "engine_error", False),
        ("RequestInvalid", "invalid_value", False),
        ("RequestTooLong", "context_length_exceeded", False),
        ("CheckpointMismatch", "checkpoint_mismatch", True),
        ("NumericalError", "numerical_error", False),
        ("GrammarStuck", "grammar_stuck", False),
        ("RunnerFailed", "runner_failed", False),
        ("CallTimedOut", "call_timed_out", False),
        ("EngineStopped", "worker_lost", True),
        ("StepFailed", "worker_lost", True),
        ("OutOfMemory", "out_of_memory", True),
        ("UpstreamRefused", "invalid_value", False),
        ("UpstreamFailed", "engine_error", True),
        ("UpstreamLost", "worker_lost", True),
        ("ServerLost", "worker_lost", True),
        ("UpstreamBusy", "worker_lost", True),
    }
