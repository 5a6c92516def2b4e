"""The fake model: the same words every time, and no plan accepted that breaks the contract."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from headrace.models.engine.requests import EngineRequest, Grammar, RequestInvalid, SamplingParams
from headrace.models.engine.runner import Row, Sampled, StepPlan
from headrace.models.fakes.fake import EOS, FakeRunner, PlanError, next_token

PROMPT = tuple(b"hello world")


def request(name: str = "a", *, max_tokens: int = 50, ignore_eos: bool = False) -> EngineRequest:
    return EngineRequest(name, PROMPT, SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos))


def prefill(name: str = "a", blocks: tuple[int, ...] = (0, 1, 2)) -> Row:
    return Row(request(name), PROMPT, start=0, blocks=blocks, output=(), sample=True)


def decode(output: list[int], name: str = "a", blocks: tuple[int, ...] = (0, 1, 2)) -> Row:
    start = len(PROMPT) + len(output) - 1
    return Row(request(name), output[-1:], start=start, blocks=blocks, output=output, sample=True)


def runner() -> FakeRunner:
    return FakeRunner(num_blocks=8, block_tokens=4)


def say(prompt: Sequence[int], *, ends: bool = True, limit: int = 400) -> list[int]:
    output: list[int] = []
    while len(output) < limit and (not output or output[-1] != EOS):
        output.append(next_token(prompt, output, ends=ends))
    return output


def test_it_says_english_words_and_ends_by_itself() -> None:
    said = say(PROMPT)
    assert said == say(PROMPT)
    assert said[-1] == EOS
    words = bytes(said[:-1]).decode().split(" ")
    assert len(words) > 1
    assert all(word.isascii() and word.isalpha() for word in words)


def test_other_prompts_get_other_answers_of_other_lengths() -> None:
    answers = [say(b"prompt %d" % n) for n in range(20)]
    assert len({tuple(answer) for answer in answers}) == 20
    assert len({len(answer) for answer in answers}) > 10
    assert max(map(len, answers)) < 150


def test_it_goes_on_where_it_is_told_to_ignore_the_end() -> None:
    assert EOS not in say(PROMPT, ends=False)


def test_the_token_comes_from_the_cache() -> None:
    fake = runner()
    output: list[int] = []
    for _ in range(5):
        row = decode(output, blocks=(4, 2, 7, 1)) if output else prefill(blocks=(4, 2, 7))
        [sampled] = fake.run(StepPlan((row,)))
        assert sampled.token == next_token(PROMPT, output)
        output.append(sampled.token)


def test_a_prompt_may_come_in_chunks_and_from_the_start_again() -> None:
    fake = runner()
    first = replace(prefill(), tokens=PROMPT[:6], sample=False)
    rest = replace(prefill(), tokens=PROMPT[6:], start=6)
    assert fake.run(StepPlan((first,))) == []
    assert fake.run(StepPlan((rest,))) == fake.run(StepPlan((prefill(blocks=(5, 6, 7)),)))


HOLE = replace(prefill(), tokens=PROMPT[6:], start=6)
TOO_MANY = replace(prefill(), request=request(max_tokens=1), tokens=(*PROMPT, 65), output=[65])
BROKEN = [
    ("a step has rows", []),
    ("a request has one row", [prefill(), prefill(blocks=(3, 4, 5))]),
    ("a block that is written has one owner", [prefill(), prefill("b", blocks=(2, 3, 4))]),
    ("a row has each block once", [prefill(blocks=(0, 1, 1))]),
    ("the block table covers the row", [prefill(blocks=(0, 1))]),
    ("blocks are in the pool", [prefill(blocks=(0, 1, 8))]),
    ("a row has tokens", [replace(prefill(), tokens=(), sample=False)]),
    ("a row continues what is known", [replace(prefill(), tokens=PROMPT[::-1])]),
    ("the newest token, and no other", [replace(prefill(), sample=False)]),
    ("the newest token, and no other", [replace(prefill(), tokens=PROMPT[:5])]),
    ("positions follow one another", [HOLE]),
    ("no row goes on past max_tokens", [TOO_MANY]),
]


@pytest.mark.parametrize(("rule", "rows"), BROKEN)
def test_a_plan_that_breaks_the_contract_is_refused(rule: str, rows: list[Row]) -> None:
    with pytest.raises(PlanError, match=rule):
        runner().run(StepPlan(tuple(rows)))


def test_prefill_before_decode_is_refused() -> None:
    fake = runner()
    [sampled] = fake.run(StepPlan((prefill(),)))
    assert sampled.token is not None
    with pytest.raises(PlanError, match="decode rows come first"):
        fake.run(StepPlan((prefill("b", blocks=(3, 4, 5)), decode([sampled.token]))))


def test_a_block_that_somebody_else_wrote_into_is_noticed() -> None:
    fake = runner()
    [sampled] = fake.run(StepPlan((prefill(),)))
    other = Row(
        EngineRequest("b", (1, 2), SamplingParams(max_tokens=5)), (1, 2), 0, blocks=(1,), output=(), sample=True
    )
    fake.run(StepPlan((other,)))
    assert sampled.token is not None
    with pytest.raises(PlanError, match="hold what it would have written"):
        fake.run(StepPlan((decode([sampled.token]),)))


def test_the_id_of_a_forgotten_request_may_come_again() -> None:
    fake = runner()
    fake.run(StepPlan((prefill(),)))
    fake.forget("a")
    fake.forget("never seen")
    other = EngineRequest("a", (1, 2), SamplingParams(max_tokens=5))
    fake.run(StepPlan((Row(other, (1,), 0, (3,), (), sample=False),)))
    [sampled] = fake.run(StepPlan((Row(other, (2,), 1, (3,), (), sample=True),)))
    assert sampled.token == next_token((1, 2), ())


def test_full_blocks_may_be_read_by_several_and_written_by_none() -> None:
    fake = runner()
    [first] = fake.run(StepPlan((prefill(),)))
    second = replace(prefill("b", blocks=(0, 1, 5)), tokens=PROMPT[8:], start=8)
    assert first.token is not None
    [goes_on, found] = fake.run(StepPlan((decode([first.token]), second)))
    assert (found.token, goes_on.token) == (first.token, next_token(PROMPT, [first.token]))
    too_early = replace(second, tokens=PROMPT[7:], start=7)
    with pytest.raises(PlanError, match="has one owner"):
        fake.run(StepPlan((decode([first.token]), too_early)))


def test_equal_tokens_after_another_beginning_or_of_another_salt_are_not_the_same() -> None:
    fake = runner()
    fake.run(StepPlan((prefill(),)))
    rest = replace(prefill("b", blocks=(0, 1, 5)), tokens=PROMPT[8:], start=8)
    with pytest.raises(PlanError, match="hold what"):
        fake.run(StepPlan((replace(rest, request=replace(rest.request, cache_salt="other")),)))
    other = EngineRequest("c", (*b"HELL", *PROMPT[4:]), SamplingParams(max_tokens=5))
    fake.run(StepPlan((Row(other, other.prompt[:4], 0, (6, 7, 5), (), sample=False),)))
    with pytest.raises(PlanError, match="hold what"):
        fake.run(StepPlan((Row(other, other.prompt[8:], 8, (6, 1, 5), (), sample=True),)))


def test_a_row_that_is_not_finite_is_told_even_before_its_last_chunk_and_what_it_wrote_serves_nobody() -> None:
    broken = {"a"}
    fake = FakeRunner(num_blocks=8, block_tokens=4, is_finite=lambda row: row.request.id not in broken)
    chunk = replace(prefill(), tokens=PROMPT[:8], sample=False)
    assert fake.run(StepPlan((chunk,))) == [Sampled("a", None, finite=False)]
    with pytest.raises(PlanError, match="hold what"):
        fake.run(StepPlan((replace(prefill("b"), tokens=PROMPT[8:], start=8),)))
    sound = prefill("c", blocks=(3, 4, 5))
    assert fake.run(StepPlan((chunk, sound))) == [
        Sampled("a", None, finite=False),
        Sampled("c", next_token(PROMPT, ())),
    ]


def test_a_step_takes_its_time_and_fails_as_told() -> None:
    slept: list[float] = []
    fake = FakeRunner(step_s=0.25, sleep=slept.append, is_finite=lambda row: False)
    [sampled] = fake.run(StepPlan((prefill(),)))
    assert (sampled.token, sampled.finite, slept) == (None, False, [0.25])

    def fault(plan: StepPlan) -> None:
        raise RuntimeError("device")

    with pytest.raises(RuntimeError, match="device"):
        FakeRunner(fault=fault).run(StepPlan((prefill(),)))


def test_within_a_grammar_it_comes_to_the_end_and_drafts_are_held_to_it() -> None:
    fake, grammar = runner(), Grammar("regex", '"[a-z]{3,9}"')
    asked = EngineRequest("a", PROMPT, SamplingParams(max_tokens=50, grammar=grammar))
    blocks = (0, 1, 2, 3, 4, 5)
    (said,) = fake.run(StepPlan((replace(prefill(blocks=blocks), request=asked),)))
    output: list[int] = [said.token or 0]
    while output[-1] != EOS:
        drafts = [*b"xyz"] if len(output) == 1 else []
        row = replace(decode(output, blocks=blocks), request=asked)
        row = replace(row, tokens=(*row.tokens, *drafts), drafts=tuple(drafts))
        (said,) = fake.run(StepPlan((row,)))
        output += [*said.accepted, said.token or 0]
    assert re.fullmatch(rb'"[a-z]{3,9}"', bytes(output[:-1]))
    with pytest.raises(RequestInvalid, match="cannot be followed"):
        fake.check(replace(asked, sampling=replace(asked.sampling, grammar=Grammar("regex", "[a"))))
