"""A single request: its end, its visible text, and the hashes of its blocks.

Hashes are equal for equal beginnings of the same salt, and for nothing else.
"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.models.engine.requests import FinishReason, SampledLogprobs, SamplingParams
from headrace.models.engine.runner import Sampled
from headrace.models.engine.sequence import BlockHasher
from headrace.models.fakes.fake import EOS
from tests.models.engine.rig import Late, ask, seq


def test_the_end_of_the_sequence_ends_it_unless_ignored() -> None:
    assert seq(ask()).add(EOS, now=1.0) is FinishReason.STOP
    assert seq(ask(ignore_eos=True)).add(EOS, now=1.0) is None


def test_the_last_token_may_be_the_end_of_the_sequence() -> None:
    assert seq(ask(max_tokens=1)).add(EOS, now=1.0) is FinishReason.STOP
    assert seq(ask(max_tokens=1)).add(ord("a"), now=1.0) is FinishReason.LENGTH


def test_the_end_of_the_sequence_is_counted_but_not_shown() -> None:
    request = seq(ask())
    request.add(ord("a"), now=1.0)
    reason = request.add(EOS, now=2.0)
    assert reason is not None
    request.close(reason)
    request.take_delta()
    completion = request.completion(reason, now=3.0)
    assert (completion.text, completion.token_ids) == ("a", (ord("a"), EOS))


@pytest.mark.parametrize(("stop", "reason", "text"), [("bc", "stop", "a"), ("cd", "length", "abc")])
def test_text_that_comes_last_may_hold_a_stop_string(stop: str, reason: str, text: str) -> None:
    request = seq(ask(max_tokens=3, stop=[stop]), Late())
    ends = [request.add(ord(letter), now=1.0) for letter in "abc"]
    assert ends == [None, None, FinishReason.LENGTH]
    assert request.close(FinishReason.LENGTH) == reason
    delta = request.take_delta()
    assert delta is not None
    assert (delta.seq, delta.text, delta.token_ids) == (1, text, tuple(b"abc"))


def test_cancelling_keeps_its_own_reason_whatever_the_last_text_holds() -> None:
    request = seq(ask(stop=["bc"]), Late())
    for letter in "abc":
        request.add(ord(letter), now=1.0)
    assert request.close(FinishReason.CANCELLED) is FinishReason.CANCELLED


def test_pending_tokens_go_on_from_the_prompt_into_the_output() -> None:
    request = seq(ask("prompt"))
    for letter in "out":
        request.add(ord(letter), now=1.0)
    request.num_cached = 4
    assert bytes(request.pending(3)) == b"pto"
    request.num_cached = 7
    assert bytes(request.pending(2)) == b"ut"
    request.num_cached = 8
    assert (request.is_decoding, bytes(request.pending(1))) == (True, b"t")


@pytest.mark.parametrize(("prompt", "is_scored"), [("a", False), ("ab", True)])
def test_the_tokens_after_the_first_are_scored_until_their_logprobs_are_known(prompt: str, is_scored: bool) -> None:
    sampling = SamplingParams(1, echo=True, logprobs=0)
    request = seq(replace(ask(prompt), sampling=sampling))
    assert request.is_scoring_prompt is is_scored
    request.take(Sampled(request.id, ord("c"), prompt_logprobs=(SampledLogprobs(-1.0),)), now=1.0)
    assert not request.is_scoring_prompt
    assert not seq(replace(ask(prompt), sampling=replace(sampling, logprobs=None))).is_scoring_prompt


TOKENS = st.lists(st.integers(0, 2), max_size=14)


def names(tokens: list[int], salt: str = "", *, num_prompt: int = 0, block_tokens: int = 2) -> list[bytes]:
    prompt, output = tokens[:num_prompt], tokens[num_prompt:]
    return BlockHasher(salt).first(len(tokens) // block_tokens, prompt, output, block_tokens)


@given(TOKENS, TOKENS, st.integers(0, 14), st.integers(0, 14))
def test_names_are_equal_as_far_as_the_tokens_are(one: list[int], other: list[int], cut: int, other_cut: int) -> None:
    ours, theirs = names(one, num_prompt=cut), names(other, num_prompt=other_cut)
    same = [one[: 2 * n + 2] == other[: 2 * n + 2] for n in range(min(len(ours), len(theirs)))]
    assert [a == b for a, b in zip(ours, theirs, strict=False)] == same
    assert len(set(ours)) == len(ours)


@given(TOKENS, st.text(max_size=4), st.text(max_size=4))
def test_another_salt_is_another_name(tokens: list[int], one: str, other: str) -> None:
    if one != other:
        assert not set(names(tokens, one)) & set(names(tokens, other))


def test_names_grow_with_the_output() -> None:
    grown = BlockHasher("")
    output: list[int] = []
    for token in range(9):
        output.append(token)
        expected = names([7, 7, 7, *output], block_tokens=4)
        assert grown.first((3 + len(output)) // 4, [7, 7, 7], output, 4) == expected
    assert grown.first(1, [7, 7, 7], output, 4) == names([7, 7, 7, 0], block_tokens=4)
