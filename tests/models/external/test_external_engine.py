"""An engine on a scripted server: reasons to refuse a request, when the server gets one more, and the bodies sent."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from headrace.models.engine.requests import (
    CheckpointMismatch,
    EngineError,
    EngineRequest,
    FinishReason,
    Grammar,
    RequestInvalid,
    SampledLogprobs,
    SamplingParams,
)
from headrace.models.external.external_engine import ExternalConfig, ExternalEngine
from headrace.models.external.upstream import (
    Capabilities,
    Piece,
    ServerInfo,
    ServerLoad,
    UpstreamBusy,
    UpstreamLost,
    UpstreamRequest,
)
from tests.models.engine.rig import Bytes
from tests.models.external.engines import WAIT_S, wait_until

EOS = 256


@dataclass
class Script:
    """An ``Upstream`` that says what the test says. Without a last piece a request goes on for ever."""

    capabilities: Capabilities = field(default_factory=Capabilities)
    info: ServerInfo = field(default_factory=lambda: ServerInfo("1.0", ("m",)))
    now: ServerLoad = field(default_factory=lambda: ServerLoad(0, 0, kv_use=0.0, kv_tokens=1000))
    pieces: Sequence[Piece | Exception] = ()
    sent: list[UpstreamRequest] = field(default_factory=list)
    num_described: int = 0
    num_asked: int = 0
    is_silent: bool = False

    async def describe(self) -> ServerInfo:
        self.num_described += 1
        return self.info

    async def load(self) -> ServerLoad:
        while self.is_silent:  # noqa: ASYNC110 - a thread, which has no event of this loop, ends it
            await asyncio.sleep(0.001)
        self.num_asked += 1
        return self.now

    async def silence(self) -> ServerLoad:
        raise UpstreamLost("it is silent")

    async def generate(self, request: UpstreamRequest) -> AsyncGenerator[Piece, None]:
        self.sent.append(request)
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
        await asyncio.Event().wait()

    async def abort(self, request_ids: Sequence[str]) -> None:
        pass

    async def close(self) -> None:
        pass


class Clocked:
    """A started engine whose clock stands still until the test moves it."""

    def __init__(self) -> None:
        self.script = Script()
        self.time_s = 100.0
        self.engine = ExternalEngine(
            self.script,
            Bytes,
            frozenset({EOS}),
            ExternalConfig("m", 5000, max_slots=40, poll_s=0.002),
            on_deltas=lambda deltas: None,
            refuse=lambda info: None if "m" in info.models else "it is another",
            clock=lambda: self.time_s,
        )

    def see(self, **load: Any) -> None:
        """Let the server have this load, and wait until the engine knows it."""
        self.script.now = replace(ServerLoad(0, 0, kv_use=0.0, kv_tokens=1000), **load)
        num_asked = self.script.num_asked
        wait_until(lambda: self.script.num_asked >= num_asked + 2)


@pytest.fixture
def on() -> Iterator[Clocked]:
    clocked = Clocked()
    assert clocked.engine.why_not == "the inference server was not asked yet"
    clocked.engine.start()
    clocked.see()
    yield clocked
    clocked.engine.stop(WAIT_S)


def ask(name: str = "one", *, max_tokens: int = 20, prompt: int = 10, **sampling: Any) -> EngineRequest:
    return EngineRequest(name, tuple(range(prompt)), SamplingParams(max_tokens, **sampling))


def test_not_many_more_are_sent_than_the_server_says_it_runs(on: Clocked) -> None:
    assert on.engine.can_admit(1, 1, count=16)
    assert not on.engine.can_admit(1, 1, count=17)
    on.see(running=1)
    assert on.engine.can_admit(1, 1, count=18)
    assert not on.engine.can_admit(1, 1, count=19)
    on.script.capabilities = replace(on.script.capabilities, load=False)
    assert on.engine.can_admit(1, 1, count=40), "a server that says nothing is limited by the slots"
    assert not on.engine.can_admit(1, 1, count=41)


def test_the_most_that_a_server_runs_counts_those_it_has_not_seen(on: Clocked) -> None:
    on.see(running=1, max_running=3)
    assert on.engine.can_admit(1, 1, count=2)
    assert not on.engine.can_admit(1, 1, count=3)
    on.engine.submit(ask())
    assert on.engine.can_admit(1, 1)
    assert not on.engine.can_admit(1, 1, count=2)


def test_the_kv_cache_holds_what_runs_what_was_sent_and_what_comes(on: Clocked) -> None:
    on.see(kv_tokens=100, kv_use=0.5)
    assert on.engine.can_admit(20, 30)
    assert not on.engine.can_admit(20, 31)
    assert on.engine.can_admit(10, 15, count=2)
    assert not on.engine.can_admit(10, 16, count=2)
    on.see(kv_tokens=100)
    assert on.engine.can_admit(500, 500), "so that it is refused for its length"
    on.engine.submit(ask())
    assert on.engine.can_admit(10, 60)
    assert not on.engine.can_admit(10, 61)
    on.time_s += 1
    on.see(kv_tokens=100)
    assert on.engine.can_admit(10, 70), "its prompt is in the server's own number now"
    assert not on.engine.can_admit(10, 71)


@pytest.mark.parametrize(("kv_use", "expected"), [(0.94, True), (0.95, False), (None, True)])
def test_a_server_that_does_not_say_its_size_is_filled_to_a_share(
    on: Clocked, kv_use: float | None, expected: bool
) -> None:
    on.see(kv_tokens=None, kv_use=kv_use)
    assert on.engine.can_admit(1, 1) is expected
    assert on.engine.capacity_tokens == 5000


def test_a_queue_keeps_requests_out_unless_it_is_left_over(on: Clocked) -> None:
    on.see(waiting=1)
    assert not on.engine.can_admit(1, 1)
    on.time_s += 9.5
    on.see(waiting=1)
    assert not on.engine.can_admit(1, 1)
    on.time_s += 0.5
    on.see(waiting=1)
    assert on.engine.can_admit(1, 1)
    on.engine.submit(ask())
    assert not on.engine.can_admit(1, 1), "ours may be the one that waits"


def test_old_numbers_are_not_used(on: Clocked) -> None:
    on.script.is_silent = True
    on.time_s += 2.0
    assert on.engine.can_admit(1, 1)
    on.time_s += 0.1
    assert not on.engine.can_admit(1, 1)
    on.script.is_silent = False


def test_the_statistics_and_the_longest_request_are_the_server_s(on: Clocked) -> None:
    on.script.info = replace(on.script.info, context_window=700)
    on.script.pieces = [Piece((65, 66), num_cached_tokens=4), Piece((67, EOS), finish=FinishReason.STOP)]
    on.see(kv_use=0.25, preempted=3)
    assert on.engine.capacity_tokens == 1000
    on.see(started_at=2.0)
    wait_until(lambda: on.engine.why_not is None and on.engine.capacity_tokens == 700)
    assert on.script.num_described == 2, "a server that has restarted is described again"
    on.see(kv_use=0.25, preempted=3, started_at=2.0)
    done = on.engine.submit(ask(max_tokens=9)).result(WAIT_S)
    assert (done.text, done.num_cached_tokens) == ("ABC", 4)
    stats = on.engine.stats()
    assert (stats.total_blocks, stats.free_blocks, stats.preempted) == (1000, 750, 3)
    assert (stats.prompt_tokens, stats.output_tokens, stats.cached_tokens) == (10, 4, 4)
    assert (stats.running, stats.waiting, stats.completed, stats.failed, stats.max_slots) == (0, 0, 1, 0, 40)
    assert (stats.evicted_blocks, stats.drafted_tokens, stats.accepted_tokens) == (0, 0, 0)


@pytest.mark.parametrize("error", [UpstreamLost("gone"), UpstreamBusy("full")])
def test_a_server_that_loses_a_request_is_described_again(on: Clocked, error: EngineError) -> None:
    on.script.pieces = [Piece((65,)), error]
    with pytest.raises(type(error), match=str(error)) as lost:
        on.engine.submit(ask()).result(WAIT_S)
    assert lost.value.progress is not None
    assert (lost.value.progress.deltas, lost.value.progress.token_ids) == (("A",), ((65,),))
    wait_until(lambda: on.script.num_described == 2)
    on.see()
    assert on.engine.why_not is None
    on.script.info = replace(on.script.info, models=("other",))
    on.script.now = replace(on.script.now, started_at=1.0)
    wait_until(lambda: on.engine.why_not == "it is another")


def test_a_counter_that_falls_is_a_restart(on: Clocked) -> None:
    on.see(num_tokens=5)
    assert on.script.num_described == 1
    on.script.now = replace(on.script.now, num_tokens=4)
    wait_until(lambda: on.script.num_described == 2)


def test_what_is_sent_is_the_rest_of_the_request(on: Clocked) -> None:
    scores = SampledLogprobs(-1.0)
    on.engine.submit(
        EngineRequest(
            ("job", 7, 1),
            (0, 1, 2),
            SamplingParams(9, temperature=0.5, logprobs=0, min_tokens=5, stop_token_ids=(70, 9)),
            emitted=(65, 66),
            emitted_deltas=("A", "B"),
            emitted_logprobs=(scores, scores),
            pause_after=4,
            class_rank=1,
            cache_salt="salt",
            traceparent="trace",
            messages={"messages": []},
        )
    )
    wait_until(lambda: bool(on.script.sent))
    assert on.script.sent == [
        UpstreamRequest(
            id="job-7-1",
            model="m",
            prompt=(0, 1, 2, 65, 66),
            sampling=SamplingParams(4, temperature=0.5, logprobs=0, min_tokens=3, stop_token_ids=(70, 9)),
            stop_token_ids=(9, 70, EOS),
            priority=1,
            cache_salt="salt",
            messages={"messages": []},
            traceparent="trace",
        )
    ]


def test_min_tokens_and_ends_of_what_is_sent(on: Clocked) -> None:
    sampling = SamplingParams(9, min_tokens=8, ignore_eos=True)
    on.engine.submit(replace(ask(), sampling=sampling, pause_after=2, class_rank=2))
    on.engine.submit(replace(ask("two"), sampling=replace(sampling, min_tokens=1, ignore_eos=False)))
    wait_until(lambda: len(on.script.sent) == 2)
    by_id = {each.id: each for each in on.script.sent}
    assert (by_id["one"].sampling.max_tokens, by_id["one"].sampling.min_tokens) == (2, 2), "not more than are asked"
    assert (by_id["one"].stop_token_ids, by_id["one"].piece_tokens) == ((), 8)
    assert (by_id["two"].sampling.min_tokens, by_id["two"].stop_token_ids, by_id["two"].piece_tokens) == (1, (EOS,), 1)


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"grammar": Grammar("regex", "a")},
        {"grammars": frozenset({"choice"})},
        "kind regex",
    ),
    ({"logprobs": 0}, {"logprobs": False}, "no logprobs"),
    (
        {"bad_words": ("x",)},
        {"bad_words": False},
        "no `bad_words`",
    ),
    (
        {"echo": True, "logprobs": 1},
        {"echo": False},
        "leave out `echo`",
    ),
    (
        {"seed": 1, "temperature": 0.5},
        {"seeds": False},
        "leave out `seed`",
    ),
]
ALL = Capabilities(
    grammars=frozenset({"regex"}),
    bad_words=True,
    echo=True,
    continues_grammar=True,
    continues_repetition_penalty=True,
    continues_penalties=True,
    continues_seed=True,
)


@pytest.fixture
def idle() -> Iterator[Clocked]:
    """An engine that is never started."""
    clocked = Clocked()
    clocked.script.capabilities = ALL
    yield clocked
    clocked.engine.stop(WAIT_S)


@pytest.mark.parametrize(("sampling", "lacks", "message"), REFUSALS)
def test_a_request_that_needs_more_than_the_server_can_is_refused(
    idle: Clocked, sampling: dict[str, Any], lacks: dict[str, Any], message: str
) -> None:
    idle.engine.check(ask(**sampling))
    idle.script.capabilities = replace(ALL, **lacks)
    with pytest.raises(RequestInvalid) as refused:
        idle.engine.check(ask(**sampling))
    assert message in str(refused.value)
    idle.engine.check(ask(seed=1))  # a greedy request draws nothing


LOST: list[tuple[dict[str, Any], str, str]] = [
    ({}, "token_ids", "text instead of tokens"),
    ({"grammar": Grammar("regex", "A+")}, "continues_grammar", "a grammar"),
    ({"repetition_penalty": 1.1}, "continues_repetition_penalty", "a repetition penalty"),
    ({"presence_penalty": 0.1}, "continues_penalties", "presence or frequency penalties, or bad words"),
    ({"frequency_penalty": 0.1}, "continues_penalties", "presence or frequency penalties, or bad words"),
    ({"bad_words": ("x",)}, "continues_penalties", "presence or frequency penalties, or bad words"),
    ({"seed": 1, "temperature": 0.1}, "continues_seed", "a seed"),
]


@pytest.mark.parametrize(("sampling", "capability", "lost"), LOST)
def test_an_attempt_with_a_state_that_is_lost_starts_anew(
    idle: Clocked, sampling: dict[str, Any], capability: str, lost: str
) -> None:
    first = ask(**sampling)
    again = replace(first, emitted=(65,), emitted_deltas=("A",))
    idle.engine.check(again)
    idle.script.capabilities = replace(ALL, **{capability: False})
    idle.engine.check(first)
    with pytest.raises(CheckpointMismatch) as mismatch:
        idle.engine.check(again)
    assert str(mismatch.value).endswith(lost)


@pytest.mark.parametrize("name", ["context_window", "max_slots", "deltas_per_s", "poll_s"])
def test_an_engine_in_which_nothing_could_run_is_refused(name: str) -> None:
    values: dict[str, Any] = {"model": "m", "context_window": 1, name: 0}
    with pytest.raises(ValueError, match="poll time"):
        ExternalConfig(**values)
