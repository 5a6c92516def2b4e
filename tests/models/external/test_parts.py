"""The parts of a request, the question about a picture, the kinds of servers, and streams that end wrongly."""

import asyncio
import json
import logging
from base64 import b64decode
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from models.engine.reasoning import ReasoningTokens
from models.engine.requests import EngineError, EngineRequest, FinishReason, Grammar, SamplingParams
from models.engine.sequence import SequenceState
from models.external import image_probe
from models.external.connect import connect
from models.external.image_probe import PICTURE, why_no_images
from models.external.network_thread import NetworkThread
from models.external.openai_chat import OpenaiChatUpstream
from models.external.reasoning_part import SentPart, next_part, reasoning_part
from models.external.server_watch import ServerWatch
from models.external.sglang import SglangUpstream
from models.external.upstream import (
    Piece,
    ServerInfo,
    ServerLoad,
    UpstreamFailed,
    UpstreamLost,
    UpstreamRefused,
    UpstreamRequest,
)
from models.external.vllm import VllmUpstream
from store.registry.engine_spec import EngineKind, EngineSpec
from tests.models.engine.rig import Bytes
from tests.models.external.engines import WAIT_S, wait_until
from tests.models.external.test_admission_rules import Script

MARKS = ReasoningTokens((1,), (2, 3), is_open=True, budget=5)
GRAMMAR = Grammar("regex", "a")


def state_of(output: tuple[int, ...] = (), marks: ReasoningTokens | None = MARKS, **sampling: Any) -> SequenceState:
    request = EngineRequest("r", (9,), SamplingParams(**({"max_tokens": 40} | sampling)), reasoning=marks)
    state = SequenceState(request, Bytes(), frozenset({256}), now=0.0)
    for token in output:
        state.add(token, 0.0)
    return state


def test_a_request_with_bounds_is_sent_in_parts_until_its_answer() -> None:
    assert next_part(None, state_of(marks=None)) is None
    assert next_part(None, state_of(marks=replace(MARKS, budget=None))) is None, "nothing is bound"
    first = next_part(None, state_of())
    assert first == SentPart(1, is_last=False)
    assert next_part(first, state_of((50,))) == SentPart(2, is_last=False)
    assert next_part(first, state_of((50, 2, 3))) == SentPart(2, is_last=True)
    assert next_part(None, state_of((50, 2, 3))) is None, "an attempt that goes on in the answer"


@pytest.mark.parametrize(
    ("output", "marks", "sampling", "max_tokens", "bias"),
    [
        ((), MARKS, {}, 5, None),
        ((50, 51), MARKS, {}, 3, None),
        ((), replace(MARKS, budget=None), {"grammar": GRAMMAR}, 40, {256: -100.0}),
        ((), replace(MARKS, budget=90), {}, 40, None),
        ((), replace(MARKS, is_open=False), {}, 6, None),
        ((), MARKS, {"grammar": GRAMMAR, "logit_bias": {7: 1.0}}, 5, {7: 1.0, 256: -100.0}),
        ((), MARKS, {"logit_bias": {7: 1.0}}, 5, {7: 1.0}),
    ],
)
def test_the_reasoning_ends_with_its_mark_or_its_budget(
    output: tuple[int, ...],
    marks: ReasoningTokens,
    sampling: dict[str, Any],
    max_tokens: int,
    bias: dict[int, float] | None,
) -> None:
    state = state_of(output, marks, stop_token_ids=(70,), min_tokens=3, **sampling)
    whole = UpstreamRequest("r", "m", (9,), state.request.sampling, stop_token_ids=(70, 256), priority=1)
    expected = SamplingParams(max_tokens, logit_bias=bias)
    assert reasoning_part(whole, state) == replace(whole, sampling=expected, stop_token_ids=(256, 3))
    assert reasoning_part(whole, state_of(marks=None)) is whole


@pytest.mark.parametrize(
    ("kind", "upstream"),
    [
        (EngineKind.OPENAI, OpenaiChatUpstream),
        (EngineKind.SGLANG, SglangUpstream),
        (EngineKind.VLLM, VllmUpstream),
    ],
)
@pytest.mark.parametrize(("key", "header"), [("secret", "Bearer secret"), ("", None)])
def test_each_kind_of_server_has_its_adapter(
    kind: EngineKind, upstream: type[Any], key: str, header: str | None
) -> None:
    found: Any = connect(EngineSpec(kind=kind, served_model="m"), url="http://gpu:8000/base", api_key=key)
    assert type(found) is upstream
    assert found._http._http.headers.get("authorization") == header
    assert str(found._http._http.base_url) == "http://gpu:8000/base/"
    asyncio.run(found.close())


class Eyes(Script):
    """A server that sees, or says why not."""

    async def generate(self, request: UpstreamRequest) -> AsyncGenerator[Piece, None]:
        self.sent.append(request)
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
        if not self.pieces:
            await asyncio.Event().wait()


def test_a_server_is_asked_about_one_white_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    seeing = Eyes(pieces=[Piece(text="white", finish=FinishReason.STOP)])
    assert asyncio.run(why_no_images(seeing, "m")) is None
    (asked,) = seeing.sent
    assert (asked.id, asked.model, asked.prompt, asked.sampling) == ("image-probe", "m", (), SamplingParams(16))
    messages: Any = asked.messages["messages"]
    text, image = messages[0]["content"]
    assert (messages[0]["role"], text) == ("user", {"type": "text", "text": "Name the colour."})
    kind, _, data = image["image_url"]["url"].partition(",")
    assert (image["type"], kind, b64decode(data)) == ("image_url", "data:image/png;base64", PICTURE)
    for error in (UpstreamRefused("no eyes"), UpstreamFailed("no eyes")):
        assert asyncio.run(why_no_images(Eyes(pieces=[error]), "m")) == (
            "the version was registered with --accepts images, and its server takes none: no eyes"
        )
    with pytest.raises(UpstreamLost, match="away"):
        asyncio.run(why_no_images(Eyes(pieces=[UpstreamLost("away")]), "m"))
    monkeypatch.setattr(image_probe, "_LONGEST_S", 0.0)
    with pytest.raises(UpstreamLost) as lost:
        asyncio.run(why_no_images(Eyes(), "m"))
    assert str(lost.value) == "the inference server gave no answer about a picture within 0 s"


@pytest.fixture
def network() -> Iterator[tuple[Eyes, NetworkThread]]:
    upstream = Eyes()
    thread = NetworkThread(upstream, lambda: asyncio.sleep(0))
    thread.start()
    yield upstream, thread
    thread.stop(WAIT_S)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([Piece((1,))], "the inference server ended the stream before the request's end"),
        ([Piece((1,)), KeyError("x")], "the answer of the inference server could not be read (KeyError)"),
        ([Piece((1,)), UpstreamFailed("its own")], "its own"),
    ],
)
def test_a_stream_that_ends_wrongly_is_one_error_and_an_abort(
    network: tuple[Eyes, NetworkThread], pieces: list[Any], message: str
) -> None:
    upstream, thread = network
    aborted: list[str] = []

    async def abort(request_ids: Any) -> None:
        aborted.extend(request_ids)
        raise UpstreamLost("the abort fails too")

    upstream.abort = abort
    upstream.pieces = pieces
    seen: list[Piece | EngineError] = []
    thread.send(UpstreamRequest("one", "m", (1,), SamplingParams(1)), seen.append)
    wait_until(lambda: len(seen) == 2 and aborted == ["one"])
    assert (seen[0], str(seen[1])) == (Piece((1,)), message)
    upstream.pieces = [Piece((1,), finish=FinishReason.STOP)]
    thread.send(UpstreamRequest("two", "m", (1,), SamplingParams(1)), seen.append)
    wait_until(lambda: len(seen) == 3)
    thread.stop(WAIT_S)
    assert aborted == ["one"], "a request that has ended by itself is not aborted"
    assert len(seen) == 3


def watch_once(script: Script, caplog: pytest.LogCaptureFixture) -> tuple[ServerWatch, list[str]]:
    """Watch a server for a moment; return the watch and its warnings."""
    watch = ServerWatch(script, refuse=lambda info: None, on_change=lambda: None, poll_s=0.001, clock=lambda: 1.0)

    async def moment() -> None:
        task = asyncio.create_task(watch.run())
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.WARNING):
        asyncio.run(moment())
    return watch, [message for message in caplog.messages if message.startswith("server_not_used")]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (UpstreamLost("it is away"), "it is away"),
        (TimeoutError(), "the inference server does not answer"),
        (KeyError("data"), "the answer of the inference server could not be read (KeyError)"),
    ],
)
def test_a_server_that_does_not_answer_is_not_used_and_says_why(
    error: Exception, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(Script):
        async def describe(self) -> ServerInfo:
            raise error

    watch, warnings = watch_once(Away(), caplog)
    assert (watch.why_not, watch.latest) == (why, None)
    assert warnings == [f"server_not_used reason={why}"]


def test_an_answer_while_a_request_was_lost_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    class Losing(Script):
        watch: ServerWatch

        async def load(self) -> ServerLoad:
            self.watch.doubt()
            return ServerLoad(0, 0)

    script = Losing()
    script.watch = ServerWatch(script, refuse=lambda info: None, on_change=lambda: None, poll_s=9, clock=lambda: 1.0)

    async def moment() -> None:
        task = asyncio.create_task(script.watch.run())
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(moment())
    assert (script.watch.why_not, script.watch.latest) == ("a request was lost meanwhile", None)
    assert json.dumps(caplog.messages).count("a request was lost meanwhile") == 1
