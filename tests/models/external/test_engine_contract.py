"""The contract of an engine, row by row, for every engine. ``docs/engines.md`` shows what each of them can do."""

import re
import threading
import time
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from headrace.models.engine.reasoning import ReasoningTokens
from headrace.models.engine.requests import (
    CheckpointMismatch,
    EngineStopped,
    FinishReason,
    Grammar,
    RequestInvalid,
    RequestTooLong,
    SamplingParams,
)
from headrace.models.external.external_engine import ExternalEngine
from headrace.models.external.upstream import UpstreamLost
from tests.models.external.engines import WAIT_S, WINDOW, Rig, continued, shortened, wait_until
from tests.models.external.fake_server import FakeServer


def test_greedy_answers_equal_those_of_the_model_asked_directly(rig: Rig) -> None:
    requests = [rig.ask(number) for number in range(3)]
    done = [future.result(WAIT_S) for future in [rig.engine.submit(request) for request in requests]]
    for request, completion in zip(requests, done, strict=True):
        assert rig.tokens(completion) == rig.direct(request)
        assert completion.text == rig.text_of(rig.tokens(completion))
        assert completion.num_prompt_tokens == len(request.prompt)
        ended = rig.tokens(completion)[-1] in rig.eos
        assert completion.finish_reason == (FinishReason.STOP if ended else FinishReason.LENGTH)


def test_deltas_have_no_gap_and_come_before_the_outcome(rig: Rig) -> None:
    request = rig.ask()
    seen: list[int] = []
    future = rig.engine.submit(request)
    future.add_done_callback(lambda _: seen.append(len(rig.deltas)))
    completion = future.result(WAIT_S)
    wait_until(lambda: bool(seen))
    assert [delta.seq for delta in rig.deltas] == list(range(1, seen[0] + 1))
    assert "".join(delta.text for delta in rig.deltas) == completion.text
    assert tuple(delta.text for delta in rig.deltas) == completion.deltas


def test_a_stop_string_across_tokens_ends_the_text_before_it(rig: Rig) -> None:
    request = rig.ask(ignore_eos=True)
    text = rig.text_of(rig.direct(request))
    stop = text[9:14]
    completion = rig.run(replace(request, sampling=replace(request.sampling, stop=(stop,))))
    assert (completion.text, completion.finish_reason) == (text[: text.index(stop)], FinishReason.STOP)
    rig.wait_idle()


def test_a_stop_token_ends_it_and_no_end_comes_too_early(rig: Rig) -> None:
    if not rig.can.token_ids:
        pytest.skip("the server's own tokens are not known")
    request = rig.ask(ignore_eos=True)
    tokens = rig.direct(request)
    end = tokens.index(tokens[9])
    completion = rig.run(replace(request, sampling=replace(request.sampling, stop_token_ids=(tokens[9],))))
    assert (completion.token_ids, completion.finish_reason) == (tokens[: end + 1], FinishReason.STOP)
    assert completion.text == rig.text_of(tokens[:end])
    plain = replace(rig.ask(max_tokens=400), id="plain")
    num_plain = len(rig.run(plain).token_ids)
    if num_plain < 400:
        late = replace(plain, id="late", sampling=replace(plain.sampling, min_tokens=num_plain + 3))
        found = rig.run(late)
        assert len(found.token_ids) >= num_plain + 3
        first = rig.run(replace(late, id="cut", pause_after=num_plain - 1))
        assert rig.run(continued(replace(late, id="rest"), first)).token_ids == found.token_ids
    rig.wait_idle()


def test_reasoning_ends_at_its_budget_and_a_grammar_begins_after_it(rig: Rig) -> None:
    if not rig.can.token_ids:
        pytest.skip("the server's own tokens are not known")
    request = rig.ask(ignore_eos=True)
    tokens = rig.direct(request)
    opening, first, last = [token for token in range(40, 256) if token not in tokens][:3]
    marks = ReasoningTokens((opening,), (first, last), is_open=True, budget=5)
    plain = rig.run(replace(request, reasoning=marks))
    assert plain.token_ids[:7] == (*tokens[:5], first, last)
    assert (plain.num_reasoning_tokens, plain.num_output_tokens) == (5, 40)
    own = rig.run(replace(request, id="own", reasoning=replace(marks, opening=tokens[:1], is_open=False)))
    assert own.token_ids[:8] == (*tokens[:6], first, last), "the model's own opening is no part of the budget"
    if rig.server is not None:  # what the fake runner writes depends on where the prompt ends
        rest = replace(request.sampling, max_tokens=33)
        direct = replace(request, prompt=(*request.prompt, *plain.token_ids[:7]), sampling=rest)
        assert plain.token_ids[7:] == rig.direct(direct)
    first_part = rig.run(replace(request, id="cut", reasoning=marks, pause_after=3))
    resumed = rig.run(continued(replace(request, id="resumed", reasoning=marks), first_part))
    assert resumed.token_ids == plain.token_ids
    if "regex" in rig.can.grammars:
        formed = replace(
            rig.ask(grammar=Grammar("regex", "[0-9]{4}")), reasoning=replace(marks, is_forced=True, is_open=False)
        )
        done = rig.run(formed)
        assert (done.token_ids[0], done.token_ids[6:8]) == (opening, (first, last))
        assert re.fullmatch("[0-9]{4}", rig.text_of(done.token_ids[8:]))
        assert done.finish_reason is FinishReason.STOP
    rig.wait_idle()


def test_scores_of_the_prompt_come_with_the_answer_or_are_refused(rig: Rig) -> None:
    plain = rig.ask(max_tokens=3, ignore_eos=True)
    for num_tokens in (3, 0):
        sampling = replace(plain.sampling, max_tokens=num_tokens, echo=True, logprobs=1, bad_words=("zebra",))
        request = replace(plain, id=f"scored {num_tokens}", sampling=sampling)
        if isinstance(rig.engine, ExternalEngine) and not rig.can.echo:
            with pytest.raises(RequestInvalid, match=r"leave|no logprobs"):
                rig.run(request)
            continue
        done = rig.run(request)
        assert rig.tokens(done) == rig.direct(plain)[:num_tokens]
        assert [len(one.top_ids) for one in done.prompt_logprobs] == [1] * (len(plain.prompt) - 1)
    rig.wait_idle()


def test_a_cancelled_request_ends_and_computes_no_more(rig: Rig) -> None:
    request = rig.ask(max_tokens=rig.long, ignore_eos=True)
    future = rig.engine.submit(request)
    rig.wait_for_text(request)
    assert rig.engine.cancel(request.id)
    completion = future.result(WAIT_S)
    assert completion.finish_reason is FinishReason.CANCELLED
    num_tokens = len(rig.tokens(completion))
    assert 0 < num_tokens < rig.long
    assert rig.tokens(completion) == rig.direct(
        replace(request, sampling=replace(request.sampling, max_tokens=num_tokens))
    )
    rig.wait_idle()
    assert not rig.engine.cancel(request.id)


def test_a_group_of_requests_is_cancelled_together_and_no_other(rig: Rig) -> None:
    attempt = ("job", 1)
    alone = replace(rig.ask(max_tokens=rig.long, ignore_eos=True), id=("job", 2, 0), group=("job", 2))
    group = [replace(alone, id=(*attempt, number), group=attempt) for number in range(2)]
    futures = [rig.engine.submit(request) for request in (*group, alone)]
    for request in (*group, alone):
        rig.wait_for_text(request)
    assert rig.engine.cancel(attempt)
    assert [future.result(WAIT_S).finish_reason for future in futures[:2]] == [FinishReason.CANCELLED] * 2
    assert not futures[2].done()
    assert rig.engine.cancel(alone.id)
    rig.wait_idle()
    assert not rig.engine.cancel(attempt)


def test_a_request_ends_at_its_deadline(rig: Rig) -> None:
    request = replace(rig.ask(max_tokens=rig.long, ignore_eos=True), deadline=time.monotonic() + 0.3)
    assert rig.run(request).finish_reason in {FinishReason.DEADLINE, FinishReason.LENGTH}
    late = replace(rig.ask(), deadline=time.monotonic())
    assert rig.run(late).finish_reason is FinishReason.DEADLINE
    rig.wait_idle()


@pytest.mark.parametrize("num_tokens", [1, 7])
def test_a_request_handed_back_after_some_tokens_goes_on_as_if_it_had_not(rig: Rig, num_tokens: int) -> None:
    if not rig.can.token_ids:
        pytest.skip("only tokens can be counted to the pause")
    request = rig.ask(ignore_eos=True)
    first = rig.run(replace(request, pause_after=num_tokens))
    assert (first.finish_reason, len(first.token_ids)) == (FinishReason.HANDED_BACK, num_tokens)
    second = rig.run(replace(continued(request, first), pause_after=num_tokens))
    assert (second.finish_reason, len(second.token_ids)) == (FinishReason.HANDED_BACK, 2 * num_tokens), "so many more"
    third = rig.run(continued(request, second))
    assert third.token_ids == rig.direct(request)
    assert (third.num_prompt_tokens, third.num_output_tokens) == (len(request.prompt), len(third.token_ids))
    assert third.deltas[: len(first.deltas)] == first.deltas


def test_a_request_handed_back_while_it_runs_goes_on_as_if_it_had_not(rig: Rig) -> None:
    request = rig.ask(max_tokens=rig.long, ignore_eos=True)
    future = rig.engine.submit(request)
    rig.wait_for_text(request)
    rig.engine.cancel(request.id, FinishReason.HANDED_BACK)
    first = future.result(WAIT_S)
    assert first.finish_reason is FinishReason.HANDED_BACK
    if not rig.goes_on:
        with pytest.raises(CheckpointMismatch):
            rig.engine.check(continued(request, first))
        return
    again = shortened(continued(request, first))
    second = rig.run(again)
    assert rig.tokens(second) == rig.direct(again)
    assert [delta.seq for delta in rig.deltas] == list(range(1, len(second.deltas) + 1))


STATES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "greedy": (None, {}),
    "greedy with a seed": (None, {"seed": 5}),
    "sampling without a seed": (None, {"temperature": 0.9}),
    "sampling with a seed": ("continues_seed", {"temperature": 0.9, "seed": 5}),
    "repetition penalty": ("continues_repetition_penalty", {"repetition_penalty": 1.3}),
    "presence penalty": ("continues_penalties", {"presence_penalty": 0.5}),
    "frequency penalty": ("continues_penalties", {"frequency_penalty": 0.5}),
    "grammar": ("continues_grammar", {"grammar": Grammar("regex", "[a-z]{30}")}),
}
"""What an attempt must rebuild to go on: the capability that declares it, and a request's parameters."""


@pytest.mark.parametrize("state", STATES)
def test_an_attempt_goes_on_or_says_that_it_must_start_anew(rig: Rig, state: str) -> None:
    declared, sampling = STATES[state]
    if "grammar" in sampling and "regex" not in rig.can.grammars:
        pytest.skip("the engine follows no such grammar")
    request = rig.ask(max_tokens=30, ignore_eos="grammar" not in sampling, **sampling)
    if state == "sampling with a seed" and not rig.can.seeds:
        with pytest.raises(RequestInvalid, match="seed"):
            rig.engine.check(request)
        return
    first = rig.run(replace(request, pause_after=9))
    again = continued(request, first)
    if not rig.goes_on or (declared is not None and not getattr(rig.can, declared)):
        with pytest.raises(CheckpointMismatch):
            rig.engine.check(again)
        return
    second = rig.run(again)
    assert second.text.startswith(first.text)
    if state != "sampling without a seed":
        assert rig.tokens(second) == rig.tokens(rig.run(replace(request, id="whole")))


def test_logprobs_come_with_each_token_and_survive_going_on(rig: Rig) -> None:
    request = rig.ask(max_tokens=12, ignore_eos=True, logprobs=3)
    if not rig.can.logprobs:
        with pytest.raises(RequestInvalid):
            rig.engine.check(request)
        return
    whole = rig.run(request)
    assert len(whole.logprobs) == len(whole.token_ids) == 12
    for token, each in zip(whole.token_ids, whole.logprobs, strict=True):
        assert each.logprob <= 0
        assert token in each.top_ids
        assert list(each.top_logprobs) == sorted(each.top_logprobs, reverse=True)
    first = rig.run(replace(request, id="first", pause_after=5))
    second = rig.run(continued(request, first))
    assert [each.top_ids for each in second.logprobs] == [each.top_ids for each in whole.logprobs]
    assert all(not each.top_ids for each in rig.run(rig.ask(max_tokens=2, logprobs=0)).logprobs)


@pytest.mark.parametrize(
    ("grammar", "matches"),
    [
        (Grammar("regex", "[a-c]{4}"), lambda text: len(text) == 4 and set(text) <= set("abc")),
        (Grammar("choice", '["yes","no"]'), lambda text: text in {"yes", "no"}),
        (Grammar("lark", 'start: "a" /[0-9]{3}/'), lambda text: text[0] == "a" and text[1:].isdigit()),
        (Grammar("json_schema", '{"type":"boolean"}'), lambda text: text.strip() in {"true", "false"}),
    ],
    ids=lambda value: value.kind if isinstance(value, Grammar) else "",
)
def test_an_answer_follows_its_grammar_or_the_request_is_refused(rig: Rig, grammar: Grammar, matches: Any) -> None:
    request = rig.ask(grammar=grammar, temperature=1.0)
    if grammar.kind in rig.can.grammars:
        assert matches(rig.run(request).text)
    else:
        with pytest.raises(RequestInvalid):
            rig.engine.check(request)


def test_requests_that_can_never_be_computed_are_refused(rig: Rig) -> None:
    with pytest.raises(RequestTooLong):
        rig.engine.submit(rig.ask(max_tokens=rig.engine.capacity_tokens))
    running = rig.ask(max_tokens=rig.long, ignore_eos=True)
    future = rig.engine.submit(running)
    with pytest.raises(RequestInvalid, match="in use"):
        rig.engine.submit(running)
    rig.engine.cancel(running.id)
    assert future.result(WAIT_S).finish_reason is FinishReason.CANCELLED


def test_a_stopped_engine_fails_its_requests_and_leaves_nothing_running(rig: Rig) -> None:
    futures = [rig.engine.submit(rig.ask(max_tokens=rig.long, ignore_eos=True)) for _ in range(3)]
    wait_until(lambda: bool(rig.deltas))
    threads = set(threading.enumerate())
    rig.engine.stop(WAIT_S)
    for future in futures:
        with pytest.raises(EngineStopped) as stopped:
            future.result(0)
        assert stopped.value.progress is not None
    rig.wait_idle()
    ended = threads - set(threading.enumerate())
    assert {"engine", *(["network"] if isinstance(rig.engine, ExternalEngine) else [])} <= {one.name for one in ended}
    with pytest.raises(EngineStopped):
        rig.engine.submit(rig.ask())


@pytest.fixture
def breakable(rig: Rig) -> Rig:
    """An engine on a server."""
    if rig.server is None:
        pytest.skip("the engine has no server")
    return rig


@pytest.fixture
def served(breakable: Rig) -> Rig:
    """An engine on a fake server, which shows what it gets."""
    if not isinstance(breakable.server, FakeServer):
        pytest.skip("the server does not show what it gets")
    return breakable


def test_a_restarted_server_loses_no_text(breakable: Rig) -> None:
    request = breakable.ask(max_tokens=breakable.long, ignore_eos=True)
    future = breakable.engine.submit(request)
    breakable.wait_for_text(request)
    breakable.server.restart(away_s=0.1)
    with pytest.raises(UpstreamLost) as lost:
        future.result(WAIT_S)
    assert lost.value.retryable
    progress = lost.value.progress
    assert progress.deltas
    wait_until(lambda: breakable.engine.can_admit(1, 1))
    again = replace(request, id="again")
    if breakable.goes_on:
        again = replace(again, emitted=tuple(chain(*progress.token_ids)), emitted_deltas=progress.deltas)
    again = shortened(again)
    assert breakable.tokens(breakable.run(again)) == breakable.direct(again)


def test_a_server_that_comes_back_with_another_model_gets_no_request(served: Rig) -> None:
    assert isinstance(served.engine, ExternalEngine)
    served.server.model = "another"
    served.server.restart(away_s=0.1)
    wait_until(lambda: "another" in (served.engine.why_not or ""))
    assert not served.engine.can_admit(1, 1)


def test_a_hung_server_makes_the_engine_unhealthy(breakable: Rig) -> None:
    engine, server, limit_s = breakable.engine, breakable.server, breakable.limit_s
    request = breakable.ask(max_tokens=breakable.long, ignore_eos=True)
    engine.submit(request)
    breakable.wait_for_text(request)
    for stop in (server.hang, server.freeze):
        stop()
        wait_until(lambda: not engine.is_healthy(limit_s))
        server.go_on()
        wait_until(lambda: engine.is_healthy(limit_s))


def test_a_slow_server_leaves_the_engine_healthy(served: Rig) -> None:
    """Steps of 0.1 s, and a limit of 0.5 s: after more than that it is healthy, because its steps count."""
    served.server.step_s = 0.1
    request = served.ask(max_tokens=served.long, ignore_eos=True)
    began = time.monotonic()
    served.engine.submit(request)
    served.wait_for_text(request, num_deltas=8)
    wait_until(lambda: time.monotonic() - began > 0.6 and served.engine.is_healthy(0.5))


def test_a_server_that_computes_a_long_prompt_moves_the_engine(served: Rig) -> None:
    """No piece comes meanwhile, but the server's own statistics change."""
    if not served.can.load:
        pytest.skip("the server does not say what it has to do")
    served.server.hang()
    served.engine.submit(served.ask(max_tokens=served.long, ignore_eos=True))
    wait_until(lambda: not served.engine.is_healthy(0.3))

    def is_seen_to_compute() -> bool:
        served.server.num_tokens += 512
        return served.engine.is_healthy(0.3)

    wait_until(is_seen_to_compute)


def test_the_tenants_salt_and_the_class_are_sent(served: Rig) -> None:
    first = replace(served.ask(), cache_salt="tenant-1", class_rank=2)
    served.run(first)
    (sent,) = served.server.calls[-1:]
    assert sent.body.get("cache_salt", sent.body.get("extra_key")) == ("tenant-1" if served.can.cache_salt else None)
    assert sent.priority == (2 if served.can.priorities else 0)


def test_the_trace_context_of_a_request_is_its_header_and_no_others(served: Rig) -> None:
    header = f"00-{'a' * 32}-{'b' * 16}-01"
    served.run(replace(served.ask(), traceparent=header))
    served.run(served.ask())
    assert [sent for _, sent in served.server.traced] == [header]


def test_a_server_with_a_queue_gets_no_more(served: Rig) -> None:
    if not served.can.load:
        pytest.skip("the server does not say what it has to do")
    served.server.max_running = 2
    requests = [served.ask(max_tokens=served.long, ignore_eos=True) for _ in range(3)]
    for request in requests:
        served.engine.submit(request)
    wait_until(lambda: served.server.num_waiting == 1)
    wait_until(lambda: not served.engine.can_admit(1, 1))
    for request in requests[:2]:
        served.engine.cancel(request.id)
    wait_until(lambda: served.engine.can_admit(1, 1))


def test_a_server_that_does_not_say_yet_what_it_runs_gets_few(served: Rig) -> None:
    """Its numbers come late: until then a queue inside the server would be invisible."""
    if not served.can.load:
        pytest.skip("the server does not say what it has to do")
    served.server.max_running = 50
    wait_until(lambda: served.engine.can_admit(1, 1))
    served.server.freeze()
    num_sent = 0
    while served.engine.can_admit(1, 1):
        served.engine.submit(served.ask(max_tokens=2))
        num_sent += 1
    served.server.go_on()
    assert num_sent <= 16


def test_a_server_with_a_full_kv_cache_gets_no_more(served: Rig) -> None:
    if not served.can.load:
        pytest.skip("the server does not say what it has to do")
    served.server.kv_tokens = WINDOW
    request = served.ask(max_tokens=served.long, ignore_eos=True)
    wait_until(lambda: served.engine.stats().total_blocks == WINDOW)
    wait_until(lambda: served.engine.can_admit(20, 100))
    served.engine.submit(request)
    assert not served.engine.can_admit(20, served.long), "it is counted before the server's next answer"


def test_nothing_but_the_sampling_of_the_request_is_used(served: Rig) -> None:
    """A server has defaults of its own, from its model's generation_config.json."""
    request = served.ask()
    served.run(request)
    plain = SamplingParams(40)
    body = served.server.calls[-1].body
    body = body.get("sampling_params", body)
    names = ["temperature", "top_p"]
    if served.can.token_ids:
        names += ["top_k", "repetition_penalty", "presence_penalty", "frequency_penalty"]
    off = {**{name: getattr(plain, name) for name in names}, **({"top_k": -1} if body.get("top_k") == -1 else {})}
    assert {name: body[name] for name in off} == off
    assert not {"seed", "sampling_seed"} & set(body)
