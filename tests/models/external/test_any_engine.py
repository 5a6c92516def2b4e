"""The rows of the contract that hold for requests of every kind: the encoder's engine passes them too."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import EncodeRequest, EngineStopped, FinishReason, RequestInvalid, RequestTooLong
from headrace.models.fakes.fake_encoder import FakeEncoder
from tests.models.external.engines import ENGINES, WAIT_S, wait_until


@dataclass
class Case:
    engine: AnyEngine
    ask: Callable[..., Any]
    """A request with this id, of this many tokens, with a deadline; it takes seconds."""


@pytest.fixture(params=["encoder", *ENGINES])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    if request.param == "encoder":
        engine = EncodeEngine(FakeEncoder(step_s=0.05), EncodeConfig(max_slots=8, step_tokens=8))
        engine.start()

        def encode(name: str, size: int = 100, deadline: float | None = None) -> Any:
            return EncodeRequest(name, ((7,) * size,) * 100, deadline=deadline)

        yield Case(engine, encode)
        engine.stop(WAIT_S)
        return
    with ENGINES[request.param]() as rig:

        def ask(name: str, size: int = rig.long, deadline: float | None = None) -> Any:
            return replace(rig.ask(max_tokens=size, ignore_eos=True), id=name, deadline=deadline)

        yield Case(rig.engine, ask)


def test_an_id_is_in_use_until_its_request_has_ended(case: Case) -> None:
    future = case.engine.submit(case.ask("one"))
    with pytest.raises(RequestInvalid, match="in use"):
        case.engine.submit(case.ask("one"))
    assert case.engine.cancel("one")
    future.result(WAIT_S)
    assert not case.engine.cancel("one")
    again = case.engine.submit(case.ask("one"))
    case.engine.cancel("one")
    again.result(WAIT_S)


def test_the_first_reason_of_an_end_stays(case: Case) -> None:
    future = case.engine.submit(case.ask("one"))
    case.engine.cancel("one")
    case.engine.cancel("one", FinishReason.HANDED_BACK)
    assert future.result(WAIT_S).finish_reason is FinishReason.CANCELLED


def test_a_request_that_is_late_is_not_computed(case: Case) -> None:
    assert case.engine.submit(case.ask("one", deadline=time.monotonic())).result(WAIT_S).finish_reason == "deadline"


def test_a_request_that_is_too_long_is_refused(case: Case) -> None:
    with pytest.raises(RequestTooLong):
        case.engine.check(case.ask("one", size=100_000))


def test_a_stopped_engine_takes_and_keeps_nothing(case: Case) -> None:
    assert case.engine.is_healthy(60.0)
    future = case.engine.submit(case.ask("one"))
    case.engine.stop(WAIT_S)
    with pytest.raises(EngineStopped):
        future.result(0)
    with pytest.raises(EngineStopped):
        case.engine.submit(case.ask("two"))
    assert not case.engine.is_healthy(60.0)
    assert not case.engine.can_admit(1, 1)
    wait_until(lambda: case.engine.stats().running + case.engine.stats().waiting == 0)
