"""The pure parts of ``make bench-engine``, and its protocol with a process that answers."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.engine.agreement import agreement, beginnings
from benchmarks.engine.contestants import Contestant
from benchmarks.engine.measured import Measured, WrongAnswer, gaps, measured
from benchmarks.engine.peers.wire import Answer, Ask, Clock, Outcome, Request, step_through
from benchmarks.engine.plot import Point, svg
from benchmarks.engine.process import DoesNotRun, PeerProcess
from benchmarks.engine.report import machine, rows
from benchmarks.engine.turns import Field, Quiet, Round, Turn, spread
from benchmarks.engine.workloads import Shape, arriving, requests_of


def _word_ids(text: str) -> list[int]:
    return [sum(map(ord, word)) for word in text.split()]


def _half_words(text: str) -> list[int]:
    return [0] * (len(text.split()) // 2)


class TestWorkload:
    def test_the_same_seed_gives_the_same_and_another_does_not(self) -> None:
        first = requests_of(Shape(), _word_ids, seed=3)

        assert first == requests_of(Shape(), _word_ids, seed=3)
        assert first != requests_of(Shape(), _word_ids, seed=4)

    def test_rounds_have_equal_lengths_and_words_of_their_own(self) -> None:
        one, two = (requests_of(Shape(prompt=(64, 512)), _word_ids, seed=3, number=n) for n in (1, 2))

        assert [(len(each.prompt), each.max_tokens) for each in one] == [
            (len(each.prompt), each.max_tokens) for each in two
        ]
        assert not {each.prompt[:16] for each in one} & {each.prompt[:16] for each in two}

    def test_lengths_lie_in_their_ranges_and_reach_towards_both_ends(self) -> None:
        made = requests_of(Shape(requests=400), _word_ids, seed=3)

        prompts, outputs = [len(each.prompt) for each in made], [each.max_tokens for each in made]
        assert 16 <= min(prompts) < 20
        assert 450 < max(prompts) <= 512
        assert 8 <= min(outputs) < 10
        assert 225 < max(outputs) <= 256

    def test_a_shared_prefix_is_shared_by_all_and_comes_on_top(self) -> None:
        made = requests_of(Shape(requests=5, prompt=(3, 3), shared=40), _word_ids, seed=3)

        assert {len(each.prompt) for each in made} == {43}
        assert len({each.prompt[:40] for each in made}) == 1
        assert len({each.prompt for each in made}) == 5

    def test_a_tokenizer_that_would_change_the_lengths_is_refused(self) -> None:
        with pytest.raises(ValueError, match="needs other words"):
            requests_of(Shape(), _half_words, seed=3)

    def test_arrivals_rise_at_the_rate_that_was_asked_for(self) -> None:
        arrived = arriving(requests_of(Shape(requests=2000), _word_ids, seed=3), per_s=4.0, seed=1)

        times_s = [each.at_s for each in arrived]
        assert times_s == sorted(times_s)
        assert 2000 / times_s[-1] == pytest.approx(4.0, rel=0.1)

    def test_a_part_is_spread_over_the_whole(self) -> None:
        made = requests_of(Shape(requests=64), _word_ids, seed=3)

        assert [each.id for each in spread(made, 4)] == ["r0", "r16", "r32", "r48"]
        assert spread(made, None) == made


def _answer(*outcomes: Outcome, seconds: float = 2.0) -> Answer:
    return Answer(outcomes, seconds, 100.0)


class TestFigures:
    def test_delays_count_from_a_requests_own_arrival(self) -> None:
        asked = [Request("a", (1,), 2, at_s=1.0), Request("b", (1,), 1)]

        found = measured(asked, _answer(Outcome("a", [7, 8], [1.5, 2.0]), Outcome("b", [9], [0.1])))

        assert found.tokens_per_s == 1.5
        assert found.ttft_mean_s == pytest.approx(0.3)
        assert found.latency_p99_s == pytest.approx(1.0)
        assert found.gap_p50_ms == pytest.approx(500)

    @pytest.mark.parametrize("got", [[], [7], [7, 8, 9]])
    def test_an_engine_that_computed_something_else_has_no_figures(self, got: list[int]) -> None:
        with pytest.raises(WrongAnswer, match=f"a got {len(got)} tokens of 2"):
            measured([Request("a", (1,), 2)], _answer(Outcome("a", got, [0.1] * len(got))))

    def test_a_request_that_was_not_answered_is_told(self) -> None:
        with pytest.raises(WrongAnswer, match="b got 0"):
            measured([Request("a", (1,), 1), Request("b", (1,), 1)], _answer(Outcome("a", [7], [0.1])))

    def test_tokens_that_come_together_make_no_gap(self) -> None:
        assert gaps([Outcome("a", [1, 2, 3], [0.1, 0.1, 0.4])]) == [pytest.approx(0.3)]


def _turn(name: str, number: int, tokens_per_s: float, slots: int = 64) -> Turn:
    figures = Measured(tokens_per_s, 1, 1, 1, 1, 1, peak_mb=tokens_per_s)
    return Turn(name, Round("mixed", Shape(), slots, number), slots, figures)


class TestRows:
    def test_a_round_is_compared_with_itself(self) -> None:
        turns = [
            *(_turn("ours", n, rate) for n, rate in enumerate([100, 50, 80])),
            *(_turn("theirs", n, rate) for n, rate in enumerate([50, 25, 20])),
        ]

        ours, theirs = rows(turns, "ours")

        assert theirs["times_all"] == [2.0, 2.0, 4.0]
        assert theirs["times"] == 2.0
        assert (theirs["tokens_per_s"], theirs["peak_mb"]) == (25, 50)
        assert ours["times"] is None

    def test_numbers_of_slots_are_rows_of_their_own(self) -> None:
        turns = [_turn("ours", 0, 100, 16), _turn("theirs", 0, 50, 16), _turn("ours", 0, 300, 64)]

        assert [(row["slots"], row["times"]) for row in rows(turns, "ours")] == [(16, None), (16, 2.0), (64, None)]

    def test_a_round_that_ours_missed_is_not_compared(self) -> None:
        (row,) = rows([_turn("theirs", 0, 50)], "ours")

        assert row["times"] is None


def test_the_machine_is_told_with_the_features_that_matter(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    flags = "fpu amx_bf16 avx2"
    cpuinfo.write_text(f"model name\t: Fast One\nflags\t\t: {flags}\n\nmodel name\t: Fast One\nflags\t\t: fpu\n")

    found = machine(cpuinfo)

    assert (found["cpu"], found["flags"]) == ("Fast One", ["avx2", "amx_bf16"])


class TestDrawing:
    def test_every_contestant_has_a_line_through_all_its_points(self) -> None:
        drawn = ElementTree.fromstring(
            svg("a < b", {"ours": [Point(100, 0.1), Point(300, 2.0)], "theirs": [Point(90, 0.2)]})
        )

        lines = [each.attrib["points"].split() for each in drawn.iter("{http://www.w3.org/2000/svg}polyline")]
        assert [len(each) for each in lines] == [2, 1]
        words = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert {"a < b", "ours", "theirs"} <= set(words)

    def test_more_throughput_is_further_right_and_a_longer_wait_further_up(self) -> None:
        drawn = ElementTree.fromstring(svg("", {"ours": [Point(100, 0.1), Point(300, 2.0)]}))

        (line,) = drawn.iter("{http://www.w3.org/2000/svg}polyline")
        (x, y), (x_later, y_later) = (map(float, each.split(",")) for each in line.attrib["points"].split())
        assert x_later > x
        assert y_later < y


class _Echo:
    """An engine that makes one token a step for each request inside."""

    def __init__(self) -> None:
        self.inside: list[Request] = []
        self.most_inside = 0

    def step(self, clock: Clock) -> None:
        self.most_inside = max(self.most_inside, len(self.inside))
        for each in list(self.inside):
            clock.note(each.id, [each.prompt[0]])
            if len(clock.outcomes[each.id].token_ids) == each.max_tokens:
                self.inside.remove(each)


def test_a_field_plays_in_turn_and_goes_on_without_those_that_fail() -> None:
    good = Contestant("good", "echo", "-", lambda model, say: _peer())
    broken = Contestant("broken", "echo", "-", lambda model, say: _peer("raise SystemExit('no weights')"))
    short = Contestant("short", "echo", "-", lambda model, say: _peer(f"run = {_ONE_TOKEN}"))
    field = Field(Path(), _word_ids, 3, lambda text: None, Quiet(wait_s=0, tries=1))

    with field.running([broken, good, short]):
        field.rounds([broken, good, short], "mixed", Shape(requests=2, output=(3, 3)), slots=16, count=2)

    assert [(turn.contestant, turn.round.number) for turn in field.turns] == [("good", 0), ("good", 1)]
    assert "no weights" in field.refusals["broken"]
    assert field.refusals["short"] == "r0 got 1 tokens of 3"


def test_an_engine_is_stepped_until_all_have_ended_and_nobody_enters_early() -> None:
    engine = _Echo()
    asked = (Request("late", (5,), 1, at_s=0.05), Request("a", (3,), 2), Request("b", (4,), 1))

    clock = step_through(Ask(2, asked), engine.inside.append, engine.step, lambda: bool(engine.inside))

    assert {each.id: each.token_ids for each in clock.outcomes.values()} == {"late": [5], "a": [3, 3], "b": [4]}
    assert clock.outcomes["late"].times_s[0] >= 0.05
    assert engine.most_inside == 2


class TestAgreement:
    def test_each_text_is_begun_as_often_and_asked_for_one_token(self) -> None:
        asked = beginnings(_word_ids, 6, texts=("a b c d e f g h i j", *_OTHERS))

        assert [chr(each.prompt[0]) for each in asked] == ["a", "k", "u", "a", "k", "u"]
        assert {each.max_tokens for each in asked} == {1}
        assert {len(each.prompt) for each in asked} <= {8, 9, 10}
        assert asked[:3] == beginnings(_word_ids, 3, texts=("a b c d e f g h i j", *_OTHERS))

    def test_a_token_counts_only_if_it_is_the_references(self) -> None:
        reference = _answer(Outcome("a", [1], [0.1]), Outcome("b", [2], [0.1]))

        assert agreement(reference, _answer(Outcome("b", [2], [0.1]), Outcome("a", [3], [0.1]))) == 0.5


_ONE_TOKEN = "lambda ask: [c := Clock(ask.requests), [c.note(each.id, [1]) for each in ask.requests]][0]"

_OTHERS = ("k l m n o p q r s t", "u v w x y z u v w x")

_PEER = """
    import sys
    from benchmarks.engine.peers.wire import Clock, Loaded, serve

    def run(ask):
        clock = Clock(ask.requests)
        for each in ask.requests:
            clock.note(each.id, [ask.slots] * each.max_tokens)
        return clock

    def load():
        print("libraries may print what they like")
        {loading}
        return Loaded(run, "1.2", facts={{"weights_mb": 7}})

    serve(load)
"""


def _peer(loading: str = "") -> Sequence[str]:
    return [sys.executable, "-c", textwrap.dedent(_PEER.format(loading=loading))]


class TestProcess:
    def test_runs_are_asked_and_answered_whatever_is_printed(self) -> None:
        with PeerProcess("test", _peer()) as process:
            first = process.ask(16, [Request("a", (1, 2), 3)])
            second = process.ask(4, [Request("b", (1,), 1)])

        assert (process.ready["version"], process.ready["weights_mb"]) == ("1.2", 7)
        assert [each.token_ids for each in (*first.outcomes, *second.outcomes)] == [[16, 16, 16], [4]]
        assert first.peak_mb > 1

    def test_one_that_cannot_load_says_why(self) -> None:
        with pytest.raises(DoesNotRun, match="no such model"):
            PeerProcess("test", _peer("raise SystemExit('no such model')"))

    def test_one_that_dies_in_a_run_says_why(self) -> None:
        with PeerProcess("test", _peer()) as process, pytest.raises(DoesNotRun, match="ValueError"):
            process.ask(1, [])
