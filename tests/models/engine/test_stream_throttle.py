"""How often text is shown: few streams token by token, many in longer pieces, and the first token at once."""

from itertools import pairwise

import pytest

from headrace.models.engine.generation_engine import LONGEST_PAUSE_S, StreamThrottle
from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import Delta
from tests.models.engine.rig import Bytes, Clock, Watched, ask, step

STEP_S = 0.02


def shown_by(num_streams: int, num_steps: int, deltas_per_s: float) -> list[tuple[float, Delta]]:
    """Return the deltas of each stream over a number of steps, with their times."""
    clock, shown = Clock(0.0), list[tuple[float, Delta]]()

    def note(deltas: list[Delta]) -> None:
        shown.extend((clock.now, delta) for delta in deltas)

    config = EngineConfig(max_slots=num_streams, step_tokens=512, deltas_per_s=deltas_per_s)
    engine = LLMEngine(Watched(num_blocks=1024), Bytes, config, on_deltas=note, clock=clock)
    for n in range(num_streams):
        engine.submit(ask("why", request_id=f"s{n}", max_tokens=60, ignore_eos=True))
    for _ in range(num_steps):
        step(engine)
        clock.now += STEP_S
    return shown


def test_few_streams_show_each_token_and_many_show_no_more_than_they_may() -> None:
    few = shown_by(2, 30, deltas_per_s=200)
    assert len(few) == 2 * 30
    many = shown_by(16, 30, deltas_per_s=100)
    first = [delta for at, delta in many if at == 0.0]
    assert len(first) == 16, "nobody waits for the first"
    assert len(many) - len(first) <= 30 * STEP_S * 100
    assert max(len(delta.token_ids) for _, delta in many) >= 16 / 100 / STEP_S


def test_nobody_waits_longer_than_a_reader_would_notice() -> None:
    shown = [at for at, delta in shown_by(16, 60, deltas_per_s=1) if delta.request_id == "s3"]
    assert max(b - a for a, b in pairwise(shown)) <= LONGEST_PAUSE_S + STEP_S


@pytest.mark.parametrize("num_running", [1, 64, 1000])
def test_without_a_bound_every_token_is_due(num_running: int) -> None:
    assert StreamThrottle(float("inf")).is_due(5.0, 5.0, num_running)


@pytest.mark.parametrize(
    ("shown_at", "now", "num_running", "is_due"),
    [
        (None, 1.0, 1000, True),
        (1.0, 1.0625, 8, True),
        (1.0, 1.0625, 9, False),
        (1.0, 1.125, 16, True),
        (1.0, 1.125, 17, False),
        (1.0, 1.1875, 1000, False),
        (1.0, 1.25, 1000, True),
    ],
)
def test_a_pause_grows_with_the_streams_up_to_the_longest(
    shown_at: float | None, now: float, num_running: int, *, is_due: bool
) -> None:
    assert StreamThrottle(128.0).is_due(shown_at, now, num_running) is is_due
