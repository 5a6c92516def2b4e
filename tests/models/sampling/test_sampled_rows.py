"""The numbers that sampling makes of logits, row by row, and the state that it keeps of requests."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from headrace.models.engine.reasoning import ReasoningTokens, ReasoningTracker
from headrace.models.engine.requests import EngineRequest, Grammar, RequestInvalid, SampledLogprobs, SamplingParams
from headrace.models.engine.runner import Row, Sampled
from headrace.models.engine.speculation import AcceptanceStatistics, Speculation
from headrace.models.sampling import grammar_masks
from headrace.models.sampling.device_sampler import is_simple
from headrace.models.sampling.penalties import Penalties
from headrace.models.sampling.prompt_scores import PromptScores
from headrace.models.sampling.reasoning_bounds import ReasoningBounds
from headrace.models.sampling.sample_positions import SamplePosition, num_accepted, sample_positions
from headrace.models.sampling.sampler import Sampler, kept_weights, logprobs_of, pick
from headrace.models.sampling.token_rules import add_bias_, forbid_banned_, forbid_early_ends_
from headrace.prompts.grammar import Grammars
from tests.models.engine.rig import ask, seq
from tests.refusals import Naming

CPU = torch.device("cpu")
NO = -torch.inf


def position(
    output: Sequence[int] = (),
    drafts: Sequence[int] = (),
    *,
    name: str = "r",
    prompt: Sequence[int] = (1,),
    banned: tuple[tuple[int, ...], ...] = (),
    reasoning: ReasoningTokens | None = None,
    **sampling: Any,
) -> SamplePosition:
    params = SamplingParams(**({"max_tokens": 9} | sampling))
    request = EngineRequest(name, tuple(prompt), params, banned=banned, reasoning=reasoning)
    return SamplePosition(Row(request, [0], 0, [0], output, sample=True, drafts=drafts), len(drafts))


LOGITS = [2.0, -2.0, 1.0, -1.0, 4.0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"repetition_penalty": 2.0}, [1.0, -4.0, 1.0, -2.0, 4.0]),
        ({"repetition_penalty": 0.5}, [4.0, -1.0, 1.0, -0.5, 4.0]),
        ({"presence_penalty": 0.5}, [2.0, -2.0, 1.0, -1.5, 4.0]),
        ({"frequency_penalty": 0.5}, [2.0, -2.0, 1.0, -2.0, 4.0]),
        ({"frequency_penalty": 0.5, "presence_penalty": 1.0, "repetition_penalty": 2.0}, [1.0, -4.0, 1.0, -4.0, 4.0]),
    ],
)
def test_penalties_count_the_prompt_once_and_the_output_as_often_as_it_comes(
    sampling: Mapping[str, float], expected: list[float]
) -> None:
    penalties = Penalties(CPU)
    logits = torch.tensor([[0.0] * 5, LOGITS])
    penalties.apply_(logits, [1], [position((3, 3), prompt=(0, 1, 1), **sampling)])
    assert logits.tolist() == [[0.0] * 5, expected]
    assert len(penalties) == 1
    penalties.forget("r")
    assert len(penalties) == 0


def test_penalties_follow_an_output_that_has_become_shorter_and_drafts_for_one_position_alone() -> None:
    penalties = Penalties(CPU)
    expected = {((3, 4), ()): [0, 0, 0, -1, -1], ((3,), (4, 4)): [0, 0, 0, -1, -2], ((3,), ()): [0, 0, 0, -1, 0]}
    for (output, drafts), scores in expected.items():
        logits = torch.zeros(1, 5)
        penalties.apply_(logits, [0], [position(output, drafts, frequency_penalty=1.0)])
        assert logits[0].tolist() == scores


def test_rules_change_the_tokens_that_they_name_and_none_beyond_the_vocabulary() -> None:
    logits = torch.zeros(2, 5)
    add_bias_(logits, [1], [position(logit_bias={0: 1.5, 4: -2.0, 5: 9.0})])
    assert logits.tolist() == [[0.0] * 5, [1.5, 0.0, 0.0, 0.0, -2.0]]
    logits = torch.zeros(3, 5)
    early = [position((2,) * count, min_tokens=2, stop_token_ids=(3, 7)) for count in (0, 1, 2)]
    forbid_early_ends_(logits, [0, 1, 2], early, {1, 6})
    assert logits.tolist() == [[0, NO, 0, NO, 0], [0, NO, 0, NO, 0], [0.0] * 5]
    logits = torch.zeros(3, 5)
    banned = ((4,), (2, 3), (2, 2, 1), (9,))
    forbid_banned_(
        logits, [0, 1, 2], [position(banned=banned), position((2,), (2,), banned=banned), position((2,), banned=banned)]
    )
    assert logits.tolist() == [[0, 0, 0, 0, NO], [0, NO, 0, NO, NO], [0, 0, 0, NO, NO]]


def test_logprobs_are_of_the_token_and_the_most_likely_ones() -> None:
    shares = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.125, 0.5, 0.25, 0.125]])
    found = logprobs_of(shares.log() + 3, torch.tensor([2, 1]), [2, 9])
    logs = [float(value) for value in shares[0].log()]
    assert found[0].logprob == pytest.approx(logs[2], abs=1e-6)
    assert (found[0].top_ids, found[1].top_ids[:2]) == ((0, 1), (1, 2))
    assert found[0].top_logprobs == pytest.approx(logs[:2], abs=1e-6)
    assert len(found[1].top_ids) == 4, "no more than the vocabulary has"


def test_top_k_and_top_p_keep_what_they_say() -> None:
    top = torch.tensor([[8.0, 4.0, 2.0, 1.0]], dtype=torch.float64)

    def kept(k: int, share: float, total: float = 16.0, vocab: int = 100) -> tuple[list[float], bool]:
        found, is_enough = kept_weights(
            top, torch.tensor([[total]]), torch.tensor([[k]]), torch.tensor([[share]]), vocab
        )
        return [round(each, 6) for each in found[0].tolist()], bool(is_enough[0])

    assert kept(2, 1.0) == ([0.666667, 0.333333, 0.0, 0.0], True)
    assert kept(4, 0.5) == ([0.533333, 0.0, 0.0, 0.0], True)
    assert kept(100, 0.5) == ([0.5, 0.0, 0.0, 0.0], True)
    assert kept(100, 0.51) == ([0.5, 0.25, 0.0, 0.0], True)
    assert kept(100, 0.9375) == ([0.5, 0.25, 0.125, 0.0625], True)
    assert kept(100, 0.95) == ([0.5, 0.25, 0.125, 0.0625], False), "the rest is not among the candidates"
    assert kept(50, 0.5) == ([0.5, 0.0, 0.0, 0.0], False), "how much top-k keeps is not known"
    numbers = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 1 - 2**-53], dtype=torch.float64)
    weights = torch.tensor([[2.0, 1.0, 1.0, 0.0]], dtype=torch.float64).repeat(6, 1)
    assert pick(weights, numbers).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_row_has_a_position_for_each_draft_up_to_the_first_that_is_rejected() -> None:
    row = Row(EngineRequest("r", (1,), SamplingParams(9)), [5, 6, 7], 1, [0], (5,), sample=True, drafts=(6, 7))
    found = sample_positions([row])
    assert [(each.number, tuple(each.drafts)) for each in found] == [(1, ()), (2, (6,)), (3, (6, 7))]
    assert [num_accepted((6, 7), chosen) for chosen in ([6, 7], [6, 8], [8, 7], [])] == [2, 1, 0, 0]


def test_a_prompts_scores_come_once_and_a_row_that_runs_again_replaces_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headrace.models.sampling.prompt_scores.POSITIONS", 2)
    prompt = (0, 1, 2, 3, 1)
    request = EngineRequest("r", prompt, SamplingParams(1, echo=True, logprobs=1))
    sizes: list[int] = []

    def logits_of(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return hidden

    def row(start: int, count: int) -> Row:
        return Row(request, prompt[start : start + count], start, [0], (), sample=False, scores_prompt=True)

    hidden = torch.eye(4)[[1, 2, 3, 1, 0]] * 50
    scores = PromptScores()
    scores.add(row(0, 3), hidden[:3] * 0, logits_of)
    scores.add(row(0, 3), hidden[:3], logits_of)
    scores.add(row(3, 2), hidden[3:], logits_of)
    assert sizes == [2, 1, 2, 1, 1], "a few positions at a time"
    sampled = {name: Sampled(name, 7) for name in ("r", "other")}
    found = scores.given_to(sampled)
    assert found["other"] == sampled["other"]
    assert found["r"].prompt_logprobs == tuple(SampledLogprobs(0.0, (token,), (0.0,)) for token in (1, 2, 3, 1))
    assert (len(scores), scores.given_to(sampled)) == (0, sampled)
    scores.add(row(0, 3), hidden[:3], logits_of)
    scores.forget("r")
    assert len(scores) == 0


MARKS = ReasoningTokens((1, 2), (3, 4), is_forced=True, budget=3)


def test_the_budget_counts_the_opening_that_may_come_first() -> None:
    tracker = ReasoningTracker(MARKS)
    found = []
    for token in (1, 2, 9, 9, 9, 3, 4, 9):
        found.append((tracker.forced, tracker.num_left, tracker.num_tokens, tracker.answer_at))
        tracker.add(token)
    found.append((tracker.forced, tracker.num_left, tracker.num_tokens, tracker.answer_at))
    assert found == [
        (1, 5, 0, None),
        (2, 4, 0, None),
        (None, 3, 0, None),
        (None, 2, 1, None),
        (None, 1, 2, None),
        (3, 0, 3, None),
        (4, -1, 4, None),
        (None, 0, 3, 7),
        (None, 0, 3, 7),
    ]
    assert ReasoningTracker(ReasoningTokens((1,), (2,))).num_left is None
    assert ReasoningTracker(ReasoningTokens((1,), (2,), is_open=True, budget=0)).forced == 2


def test_before_the_answer_tokens_are_forced_and_a_grammars_end_is_ruled_out() -> None:
    bounds = ReasoningBounds((0, 7))
    free = ReasoningTokens((1, 2), (3, 4), is_open=True)
    positions = [
        position(name="forced", reasoning=MARKS),
        position((5,), name="formed", reasoning=free, grammar=Grammar("regex", "a")),
        position((5,), name="free", reasoning=free),
        position((5, 3, 4, 6), name="answers", reasoning=free, grammar=Grammar("regex", "a")),
        position(name="plain"),
    ]
    assert bounds.answer_starts(positions) == [None, None, 0, 3, 0]
    assert len(bounds) == 3
    logits = torch.zeros(2, 5)
    bounds.restrict_(logits, [0, 1], positions[:2])
    assert logits.tolist() == [[NO, 0, NO, NO, NO], [NO, 0, 0, 0, 0]]
    bounds.forget("forced")
    assert len(bounds) == 2


def grammars() -> Grammars:
    return Grammars(None, vocab_size=257, eos_token_ids=frozenset({256}))


def request_of(name: str, **sampling: Any) -> EngineRequest:
    return EngineRequest(name, (1,), SamplingParams(9, **sampling))


A = Grammar("regex", "ab")


def test_a_grammar_that_cannot_be_followed_is_refused_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_masks, "MAX_CHECKED", 2)
    masks = grammar_masks.GrammarMasks(grammars(), 257, CPU)
    ends = Naming("ignore_eos and min_tokens")
    for sampling in ({"ignore_eos": True}, {"min_tokens": 1}):
        masks.check(request_of("plain", **sampling))
        with pytest.raises(RequestInvalid) as refused:
            masks.check(request_of("r", grammar=A, **sampling))
        assert str(refused.value) == ends
    with pytest.raises(RequestInvalid) as refused:
        grammar_masks.GrammarMasks(None, 257, CPU).check(request_of("r", grammar=A))
    assert str(refused.value) == Naming("tokenizer.json")
    for name in ("one", "two", "three"):
        masks.check(request_of(name, grammar=A))
    assert list(masks.checked) == ["two", "three"], "the oldest that has not begun is forgotten"
    masks.forget("two")
    assert list(masks.checked) == ["three"]
    logits, is_open = masks.apply(torch.zeros(1, 257), [position(name="three", grammar=A)], [0])
    assert (logits[0].isfinite().nonzero()[:, 0].tolist(), is_open) == ([ord("a")], [True])
    assert (len(masks), list(masks.checked)) == (1, [])
    masks.forget("three")
    assert len(masks) == 0


def test_after_a_draft_that_a_grammar_forbids_everything_is_allowed() -> None:
    row = position(drafts=(ord("a"), ord("x"), ord("b")), grammar=Grammar("regex", "ab")).row
    masks = grammar_masks.GrammarMasks(grammars(), 257, CPU)
    logits, is_open = masks.apply(torch.zeros(4, 257), [SamplePosition(row, count) for count in range(4)], [0] * 4)
    assert [each.isfinite().nonzero()[:, 0].tolist() for each in logits] == [
        [ord("a")],
        [ord("b")],
        list(range(257)),
        list(range(257)),
    ]
    assert is_open == [True] * 4


def test_a_ban_may_leave_nothing_of_a_grammar_and_a_request_is_forgotten_whole() -> None:
    sampler = Sampler(257, CPU, grammars(), {256})
    banned = position(name="banned", grammar=A, bad_words=("a",), banned=((ord("a"),),))
    others = [
        position(name="formed", grammar=A),
        position(name="bounded", reasoning=MARKS),
        position(name="penalised", presence_penalty=1.0),
        position(name="plain"),
    ]
    choice = sampler.sample(torch.zeros(5, 257), [banned, *others])
    assert choice.stuck == {0}
    assert choice.tokens.tolist()[1:3] == [ord("a"), 1]
    assert len(sampler) == 4, "the plain one has no state"
    for name in ("banned", "formed", "bounded", "penalised", "plain"):
        sampler.forget(name)
    assert len(sampler) == 0


@pytest.mark.parametrize(
    ("sampling", "simple"),
    [
        ({}, True),
        ({"temperature": 1.0, "top_k": 3, "min_p": 0.1, "seed": 1, "stop": ("a",), "ignore_eos": True}, True),
        ({"repetition_penalty": 1.1}, False),
        ({"presence_penalty": -0.1}, False),
        ({"frequency_penalty": 0.1}, False),
        ({"bad_words": ("a",)}, False),
        ({"logit_bias": {1: 1.0}}, False),
        ({"min_tokens": 1}, False),
        ({"logprobs": 0}, False),
        ({"grammar": A}, False),
    ],
)
def test_a_device_chooses_alone_if_the_text_so_far_does_not_matter(sampling: dict[str, Any], simple: bool) -> None:
    assert is_simple(SamplingParams(1, **sampling)) is simple


@pytest.mark.parametrize(
    ("reasoning", "grammar", "is_bound"),
    [
        (None, A, False),
        (ReasoningTokens((1,), (2,)), None, False),
        (ReasoningTokens((1,), (2,)), A, True),
        (ReasoningTokens((1,), (2,), is_forced=True), None, True),
        (ReasoningTokens((1,), (2,), budget=0), None, True),
    ],
)
def test_reasoning_has_bounds(reasoning: ReasoningTokens | None, grammar: Grammar | None, is_bound: bool) -> None:
    request = EngineRequest("r", (1,), SamplingParams(9, grammar=grammar), reasoning=reasoning)
    assert request.is_bound_in_reasoning is is_bound


@pytest.mark.parametrize(
    ("max_tokens", "most", "num_drafts"), [(9, 99, 8), (40, 99, 16), (40, 3, 3), (1, 99, 0), (40, 0, 0)]
)
def test_drafts_are_bounded_by_the_request_and_the_pass(max_tokens: int, most: int, num_drafts: int) -> None:
    speculation = Speculation(32)
    for count in (1, 4):
        speculation.costs.record(count, 1.0)  # a further token costs nothing
    speculation.begin(1)
    state = seq(ask("abc" * 20, max_tokens=max_tokens))
    assert len(speculation.draft(state, most)) == num_drafts
    assert bytes(speculation.draft(state, most)) == (b"abc" * 6)[:num_drafts]


def test_what_drafts_teach_fades() -> None:
    found = AcceptanceStatistics()
    for count in (4, 1, 0, 0):
        found.record(4, count, 10)
    assert (found.accepted, found.rejected) == pytest.approx((0.8 * 0.8 * (0.8 * 4 + 1), 0.8 * 0.8 + 0.8 + 1))
    assert (found.num_failed, found.resumes_at) == (2, 18)
    resumed = []
    for _ in range(3):
        found.record(4, 1, 20)
        resumed.append(found.resumes_at)
    assert (found.num_failed, resumed) == (0, [36, 28, 24])
