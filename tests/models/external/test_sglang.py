"""What is SGLang's own: ids, grammars by its backend, streams of both kinds, aborts. Its real answers are recorded."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.models.engine.requests import FinishReason, Grammar
from headrace.models.external.upstream import UpstreamLost, UpstreamRefused
from tests.models.external.engines import WAIT_S, Rig, sglang, wait_until
from tests.models.external.fake_sglang import FakeSglang
from tests.models.external.sglang_exchanges import exchanges, play

RECORDED = json.loads((Path(__file__).parent / "recordings" / "sglang-0.5.23.json").read_text())


@pytest.fixture(scope="module")
def played() -> Iterator[dict[str, Any]]:
    server = FakeSglang()
    yield play(server.url)
    server.close()


@pytest.mark.parametrize("name", exchanges())
def test_the_fake_server_says_nothing_that_the_real_one_does_not(played: dict[str, Any], name: str) -> None:
    found, recorded = played[name], RECORDED[name]
    assert found["status"] == recorded["status"]
    if "events" not in recorded:
        assert made_up(found["value"], recorded["value"]) == []
        return
    for event, real in ((found["events"][0], recorded["events"][0]), (found["events"][-2], recorded["events"][-2])):
        assert made_up(event, real) == []
    assert found["events"][-1] == recorded["events"][-1] == "[DONE]"


def made_up(found: Any, recorded: Any, at: str = "") -> list[str]:
    """Return what is not, or has another type, in the recorded answer. Null is any type."""
    if isinstance(found, dict) and isinstance(recorded, dict):
        return [
            line
            for name, value in found.items()
            for line in (
                made_up(value, recorded[name], f"{at}.{name}") if name in recorded else [f"{at}.{name} is made up"]
            )
        ]
    if isinstance(found, list) and isinstance(recorded, list):
        pairs = zip(found, recorded, strict=False)
        return [line for one, real in pairs for line in made_up(one, real, f"{at}[]")]
    is_same = found is None or recorded is None or type(found) is type(recorded)
    return [] if is_same else [f"{at}: {found!r} instead of {recorded!r}"]


@pytest.fixture
def sglang_rig() -> Iterator[Rig]:
    with sglang() as sglang_rig:
        yield sglang_rig


def test_the_end_of_a_first_attempt_leaves_the_tenth_alone(sglang_rig: Rig) -> None:
    """SGLang ends every request whose id begins with the given one."""
    first, tenth = (
        replace(sglang_rig.ask(max_tokens=sglang_rig.long, ignore_eos=True), id=("job", epoch)) for epoch in (1, 10)
    )
    futures = [sglang_rig.engine.submit(request) for request in (first, tenth)]
    sglang_rig.wait_for_text(first)
    sglang_rig.engine.cancel(first.id)
    assert futures[0].result(WAIT_S).finish_reason is FinishReason.CANCELLED
    wait_until(lambda: len(sglang_rig.server.aborted) == 1)
    num_seen = len(sglang_rig.deltas)
    wait_until(lambda: len(sglang_rig.deltas) > num_seen + 3)
    assert not futures[1].done()
    assert sglang_rig.engine.cancel(tenth.id)
    sglang_rig.wait_idle()
    assert len(sglang_rig.server.aborted) == 2


def test_an_abort_that_is_not_ours_is_retried(sglang_rig: Rig) -> None:
    request = sglang_rig.ask(max_tokens=sglang_rig.long, ignore_eos=True)
    future = sglang_rig.engine.submit(request)
    sglang_rig.wait_for_text(request)
    (call,) = sglang_rig.server.running
    sglang_rig.server.loop.call_soon_threadsafe(sglang_rig.server.abort, call.id)
    with pytest.raises(UpstreamLost, match="aborted"):
        future.result(WAIT_S)


def test_what_the_server_refuses_fails_with_its_reason(sglang_rig: Rig) -> None:
    with pytest.raises(UpstreamRefused, match=r"repetition_penalty must be in \(0, 2\]"):
        sglang_rig.run(sglang_rig.ask(repetition_penalty=5.0))


GRAMMARS = [
    ("llguidance", Grammar("choice", '["a b", "é"]'), {"ebnf": 'start: "a b" | "é"'}),
    ("llguidance", Grammar("lark", 'start: "a"'), {"ebnf": 'start: "a"'}),
    ("xgrammar", Grammar("choice", '["a b", "a.b"]'), {"regex": r"a\ b|a\.b"}),
    ("xgrammar", Grammar("json_schema", '{"type": "boolean"}'), {"json_schema": '{"type": "boolean"}'}),
    (
        "llguidance",
        Grammar("json_schema", '{"type": "boolean"}'),
        {"json_schema": '{"x-guidance": {"whitespace_flexible": false}, "type": "boolean"}'},
    ),
]


@pytest.mark.parametrize(("backend", "grammar", "sent"), GRAMMARS)
def test_a_grammar_is_written_for_the_servers_backend(backend: str, grammar: Grammar, sent: dict[str, str]) -> None:
    with sglang(grammar_backend=backend, by_priority=False) as sglang_rig:
        sglang_rig.run(replace(sglang_rig.ask(grammar=grammar), class_rank=1))
        (call,) = sglang_rig.server.calls
        assert sent.items() <= dict(call.body["sampling_params"]).items()
        assert "priority" not in call.body
        assert ("lark" in sglang_rig.can.grammars) == (backend == "llguidance")
