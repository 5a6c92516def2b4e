"""Jobs of tasks without models of their own, as the models of other tasks run them. The engine is a stand-in."""

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.encoders.embed.model import load_embed_model
from headrace.features.encoders.rerank.model import load_rerank_model
from headrace.models.engine.requests import EncodeOutput, FinishReason
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.metrics.worker_metrics import Served, WorkerMetrics
from headrace.store.settings import Settings
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.in_flight import Attempt, InFlightAttempts
from tests.models.loading.test_load import version
from tests.workers.engine_stub import EngineStub
from tests.workers.tasks.test_encoding import OneRequest

PAIRS = {"input": {"text_1": ["a"], "text_2": ["b", "c"]}}


@pytest.mark.parametrize(
    ("load", "runner", "vectors", "scores"),
    [
        (load_embed_model, "fake-encoder", [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0)], [1.0, 0.0]),
        (load_rerank_model, "fake-cross-encoder", [(0.25,), (0.5,)], [0.25, 0.5]),
    ],
)
def test_a_score_is_computed_by_the_models_that_serve_it(
    load: Any, runner: str, vectors: list[tuple[float, ...]], scores: list[float]
) -> None:
    fake, settings, engine = version(Path("fake"), "fake", runner), Settings(), EngineStub()
    packed = tuple(struct.pack(f"<{len(one)}f", *one) for one in vectors)
    asked: Any = OneRequest(EncodeOutput("job_1", packed, FinishReason.STOP, 3, 0.1))
    attempt = Attempt(Claim("job_1", "tnt_1", 1, 1, 1, "m", 1, PAIRS, 1, None, 0.0, 3, task="score"), 0.0, None, 0.0)
    in_flight = InFlightAttempts()
    in_flight.add(attempt)
    context: Any = SimpleNamespace(
        admission=EngineAdmission(engine, max_jobs=1, max_slots=1),
        in_flight=in_flight,
        spans=AttemptSpans(),
        frames=None,
        metrics=WorkerMetrics(Served("m", "1", "embed")),
        settings=settings,
    )
    done = load(fake, settings, lambda _: b"").new_work(asked, context).compute(attempt)
    assert isinstance(done, Finish)
    assert (done.output or {})["scores"] == pytest.approx(scores)
