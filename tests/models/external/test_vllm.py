"""What is vLLM's own: the fake server answers as the recorded real one, and what the adapter makes of its answers."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from headrace.models.engine.requests import BACKGROUND_RANK, EngineError, FinishReason, Grammar, SamplingParams
from headrace.models.external.upstream import (
    Piece,
    ServerInfo,
    UpstreamFailed,
    UpstreamLost,
    UpstreamRefused,
    UpstreamRequest,
)
from headrace.models.external.vllm import VllmUpstream
from tests.models.external.engines import WAIT_S, WINDOW, continued, vllm, wait_until
from tests.models.external.fake_server import Answer
from tests.models.external.fake_vllm import MODEL, FakeVllm
from tests.models.external.vllm_exchanges import exchanges, play, shape

RECORDED = json.loads((Path(__file__).parent / "recordings" / "vllm-0.32.json").read_text())


@pytest.fixture(scope="module")
def played() -> dict[str, Any]:
    server = FakeVllm()
    try:
        return play(server.url, MODEL)
    finally:
        server.close()


@pytest.mark.parametrize("name", exchanges(MODEL))
def test_the_fake_server_answers_in_the_shape_of_the_real_one(played: dict[str, Any], name: str) -> None:
    assert differences(shape(played[name]), shape(RECORDED[name])) == []
    assert played[name]["status"] == RECORDED[name]["status"]
    events = [len(each.get("events", [])) for each in (played[name], RECORDED[name])]
    assert events[0] == events[1], "as many tokens, and the same last events"


def differences(found: Any, recorded: Any, at: str = "") -> list[str]:
    """Return where the shapes differ."""
    if found is None or recorded is None:
        return []
    if isinstance(found, dict) and isinstance(recorded, dict):
        both = [differences(found[name], recorded[name], f"{at}.{name}") for name in found.keys() & recorded.keys()]
        return [f"{at}.{name} is there once" for name in found.keys() ^ recorded.keys()] + list(chain(*both))
    if isinstance(found, list) and isinstance(recorded, list):
        return list(chain(*(differences(*pair, f"{at}[]") for pair in zip(found, recorded, strict=False))))
    return [] if found == recorded else [f"{at}: {found} instead of {recorded}"]


@pytest.mark.parametrize(("kv_tokens", "num_engines"), [(WINDOW // 2, 1), (WINDOW * 2, 1), (WINDOW // 4, 2)])
def test_the_longest_request_fits_the_window_and_the_servers_memory(kv_tokens: int, num_engines: int) -> None:
    with vllm(kv_tokens=kv_tokens) as rig:
        rig.server.num_engines = num_engines
        wait_until(lambda: rig.engine.capacity_tokens == min(WINDOW, kv_tokens * num_engines))


class Scripted(FakeVllm):
    """Answers a request for output with what the test says."""

    def __init__(self) -> None:
        self.status = 200
        self.events: list[str] = []
        super().__init__()

    async def answer(self, method: str, path: str, body: dict[str, Any], answer: Answer) -> None:
        if path != "/inference/v1/generate":
            await super().answer(method, path, body, answer)
        elif self.status != 200:
            await answer.json(self.status, {"error": {"message": "so it is"}})
        else:
            await answer.begin_stream()
            for event in self.events:
                await answer.event(event)
            await answer.end_stream()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.close()


def pieces_of(server: FakeVllm, **sampling: Any) -> list[Piece]:
    async def collect() -> list[Piece]:
        upstream = VllmUpstream(server.url)
        try:
            request = UpstreamRequest("job-1", MODEL, (1, 2), SamplingParams(8, **sampling))
            return [piece async for piece in upstream.generate(request)]
        finally:
            await upstream.close()

    return asyncio.run(collect())


def chunk(*token_ids: int, finish: str | None = None) -> str:
    return json.dumps({"choices": [{"token_ids": token_ids, "finish_reason": finish}]})


def error(message: str, code: int) -> str:
    return json.dumps({"error": {"message": message, "type": "SomeError", "code": code}})


@pytest.mark.parametrize(
    ("status", "events", "expected"),
    [
        (200, [error("no such token", 400)], UpstreamRefused),
        (200, [chunk(5), error("one request failed", 500)], UpstreamFailed),
        (200, [chunk(5), error("EngineCore encountered an issue", 500)], UpstreamLost),
        (200, [chunk(5), chunk(finish="abort")], UpstreamLost),
        (200, ["x" * (5 << 20)], UpstreamLost),
        (400, [], UpstreamRefused),
        (404, [], UpstreamRefused),
        (401, [], UpstreamLost),
        (429, [], UpstreamLost),
        (500, [], UpstreamFailed),
        (503, [], UpstreamLost),
    ],
)
def test_an_error_is_the_requests_or_the_servers(
    scripted: Scripted, status: int, events: list[str], expected: type[EngineError]
) -> None:
    scripted.status, scripted.events = status, events
    with pytest.raises(expected):
        pieces_of(scripted)


def test_the_last_piece_has_the_cached_tokens_of_the_usage_that_follows_it(scripted: Scripted) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}
    scripted.events = [chunk(5, 6), chunk(7, finish="length"), json.dumps({"choices": [], "usage": usage}), "[DONE]"]
    last = Piece((7,), finish=FinishReason.LENGTH, num_cached_tokens=1)
    assert pieces_of(scripted) == [Piece((5, 6)), last]


def test_what_a_validator_quotes_of_the_prompt_is_left_out(scripted: Scripted) -> None:
    scripted.events = [error("token_ids: wrong, 'input': [1, 2]", 400)]
    with pytest.raises(UpstreamRefused) as refused:
        pieces_of(scripted)
    assert "wrong" in str(refused.value)
    assert "[1, 2]" not in str(refused.value)


@pytest.mark.parametrize("garbage", ["not JSON", "[]", '{"choices": [{"token_ids": 5}]}'])
def test_an_answer_that_cannot_be_read_loses_the_request_and_not_the_engine(garbage: str) -> None:
    with vllm() as rig:
        real = rig.server.answer

        async def answer(method: str, path: str, body: dict[str, Any], answer: Answer) -> None:
            if path != "/inference/v1/generate":
                await real(method, path, body, answer)
                return
            await answer.begin_stream()
            await answer.event(garbage)
            await answer.end_stream()

        rig.server.answer = answer
        with pytest.raises(UpstreamLost):
            rig.run(rig.ask())
        rig.server.answer = real
        wait_until(lambda: rig.engine.can_admit(1, 1))
        assert rig.run(rig.ask()).text


def test_a_cancelled_request_is_aborted_by_its_id() -> None:
    with vllm() as rig:
        request = replace(rig.ask(max_tokens=rig.long, ignore_eos=True), id=("job-7", 3))
        future = rig.engine.submit(request)
        rig.wait_for_text(request)
        rig.engine.cancel(request.id)
        future.result(WAIT_S)
        wait_until(lambda: rig.server.abort_calls)
        assert rig.server.abort_calls == ["generate-tokens-job-7-3"]


def test_a_lark_grammar_is_sent_so_that_only_llguidance_reads_it() -> None:
    with vllm() as rig:
        assert rig.run(rig.ask(grammar=Grammar("lark", 'start: "abc"'))).text == "abc"
        sent = rig.server.calls[-1].body["sampling_params"]["structured_outputs"]
        assert sent == {"grammar": '%llguidance {}\nstart: "abc"'}


def test_what_was_emitted_ends_the_prompt_and_only_the_rest_is_asked_for() -> None:
    with vllm() as rig:
        request = rig.ask(max_tokens=40, ignore_eos=True)
        first = rig.run(replace(request, pause_after=9))
        assert rig.server.calls[-1].max_tokens == 9
        rig.run(continued(request, first))
        assert rig.server.calls[-1].prompt == request.prompt + first.token_ids
        assert rig.server.calls[-1].max_tokens == 31


@pytest.mark.parametrize(("class_rank", "expected"), [(0, None), (BACKGROUND_RANK, 8)])
def test_background_work_is_streamed_in_larger_pieces(class_rank: int, expected: int | None) -> None:
    with vllm() as rig:
        rig.run(replace(rig.ask(), class_rank=class_rank))
        assert rig.server.calls[-1].body["sampling_params"].get("stream_interval") == expected


def described(server: FakeVllm) -> tuple[ServerInfo, VllmUpstream]:
    async def describe() -> tuple[ServerInfo, VllmUpstream]:
        upstream = VllmUpstream(server.url)
        try:
            return await upstream.describe(), upstream
        finally:
            await upstream.close()

    return asyncio.run(describe())


@pytest.mark.parametrize("has_scale_out", [True, False])
@pytest.mark.parametrize("by_priority", [True, False])
def test_what_a_server_can_do_is_found_out(has_scale_out: bool, by_priority: bool) -> None:
    server = FakeVllm(has_scale_out=has_scale_out, by_priority=by_priority, context_window=300)
    try:
        info, upstream = described(server)
        assert (info.models, info.context_window, info.engine_version) == ((MODEL,), 300, "0.32.0")
        assert (upstream.capabilities.abort, upstream.capabilities.priorities) == (has_scale_out, by_priority)
    finally:
        server.close()


def test_a_web_page_instead_of_its_settings_loses_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeVllm()
    real = server.answer

    async def answer(method: str, path: str, body: dict[str, Any], answer: Answer) -> None:
        if path.startswith("/server_info"):
            await answer.send(200, b"<html>welcome</html>", "text/html")
        else:
            await real(method, path, body, answer)

    monkeypatch.setattr(server, "answer", answer)
    try:
        with pytest.raises(UpstreamLost, match="not JSON"):
            described(server)
    finally:
        server.close()
