"""What the gate lets in: as much as outputs are expected to need, so that the pool is full and preemption is rare."""

from collections import deque

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import EngineRequest
from headrace.models.engine.scheduling.scheduler import FEWEST
from tests.models.engine.rig import Bytes, Watched, alone, ask, num_inside, step, step_until_idle

MAX_TOKENS = 1024


def engine_of(*, num_blocks: int, max_slots: int = 64) -> LLMEngine:
    runner = Watched(num_blocks=num_blocks, block_tokens=4, context_window=8192)
    config = EngineConfig(max_slots, step_tokens=512)
    return LLMEngine(runner, Bytes, config, on_deltas=lambda deltas: None)


def teach(engine: LLMEngine, num_tokens: int) -> None:
    """Let outputs of one length end."""
    for number in range(FEWEST):
        engine.submit(ask(f"lesson {number}", max_tokens=num_tokens, ignore_eos=True))
    step_until_idle(engine)


def test_before_anything_is_known_each_request_may_use_all_that_it_asks_for() -> None:
    engine = engine_of(num_blocks=10, max_slots=3)
    has_credit: list[bool] = []
    engine.on_room = lambda: has_credit.append(engine.can_admit(20, 20))
    assert engine.can_admit(20, 20)
    engine.submit(ask("12345", max_tokens=15))  # five of ten blocks, though it holds none yet
    assert (engine.can_admit(5, 15), engine.can_admit(6, 15)) == (True, False)
    engine.submit(ask("1", max_tokens=3))
    assert (engine.can_admit(1, 15), engine.can_admit(1, 16)) == (True, False)
    assert (engine.can_admit(1, 7), engine.can_admit(1, 1, count=2)) == (True, False), "one slot is left"
    engine.submit(ask("1", max_tokens=3))
    assert not engine.can_admit(1, 1)
    step_until_idle(engine)
    assert has_credit[-1]
    assert engine.can_admit(1, 40), "it can never fit: submit refuses it, which is better than waiting for ever"


def test_several_need_as_much_as_they_need_together() -> None:
    engine = engine_of(num_blocks=10)
    assert (engine.can_admit(8, 4, count=3), engine.can_admit(8, 5, count=3)) == (True, False)


def test_what_is_expected_is_what_outputs_were_like_and_never_more_than_was_asked_for() -> None:
    engine = engine_of(num_blocks=16)
    teach(engine, 8)
    assert (engine.can_admit(8, MAX_TOKENS, count=4), engine.can_admit(9, MAX_TOKENS, count=4)) == (True, False)
    assert engine.can_admit(8, 1, count=5)
    long = ask("longlong", max_tokens=40, ignore_eos=True)
    engine.submit(long)
    assert (engine.can_admit(40, 8), engine.can_admit(41, 8)) == (True, False)
    for _ in range(12):
        step(engine)  # it holds five blocks, for 20 tokens, and is expected to go on for 12 more
    assert (engine.can_admit(24, 8), engine.can_admit(25, 8)) == (True, False)


def run_by_the_gate(engine: LLMEngine, requests: list[EngineRequest]) -> list[int]:
    """Submit whenever there is room, as a worker does, and return how many were inside at each step."""
    waiting = deque(requests)
    inside: list[int] = []
    while waiting or num_inside(engine):
        while waiting and engine.can_admit(len(waiting[0].prompt), waiting[0].sampling.max_tokens):
            engine.submit(waiting.popleft())
        inside.append(num_inside(engine))
        step(engine)
    return inside


def test_requests_that_name_no_limit_fill_the_pool_and_are_hardly_ever_preempted() -> None:
    """Outputs of 8 to 128 tokens, not declared: only three would fit if each reserved its maximum."""
    engine = engine_of(num_blocks=1024)
    teach(engine, 30)
    requests = [ask(f"question {n}", max_tokens=MAX_TOKENS, salt=str(n)) for n in range(400)]
    inside = run_by_the_gate(engine, requests)
    stats = engine.stats()
    assert stats.completed == len(requests) + FEWEST
    busy = inside[100:-150]
    assert sum(busy) / len(busy) > 30
    assert stats.preempted <= len(requests) * 0.02
    assert sum(len(alone(request).token_ids) for request in requests) == stats.output_tokens - 30 * FEWEST
