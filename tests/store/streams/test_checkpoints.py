"""Checkpoints, choices and frames as values: their JSON forms, and what an attempt continues from. No I/O."""

import json
from dataclasses import replace

import pytest

from headrace.store.errors import CannotOpen
from headrace.store.streams.checkpoints import (
    Checkpoint,
    ChoiceEnd,
    ChoiceMark,
    LogprobRow,
    deltas_as_json,
    deltas_from_json,
    groups_as_json,
    lineage_from_json,
    marked_as_json,
    marked_from_json,
    read_groups,
    read_logprobs,
)
from headrace.store.streams.fencing import recover
from headrace.store.streams.stream_log import HIGHEST_SEQ, Frame, StreamCursor, read_frame, stream_key
from tests.sealing import TurnedSeal

ROW = LogprobRow(7, -0.25, ((7, -0.25), (3, -1.5)))
END = ChoiceEnd("stop", 5, 2, "###")
MARKS = (ChoiceMark(0), ChoiceMark(1), ChoiceMark(0), ChoiceMark(1, END), ChoiceMark(0, ChoiceEnd("length", 5, 3)))
CHOICES = Checkpoint(
    deltas=("Hel", "Goo", "lo", "", "!"),
    token_ids=((1,), (2, 3), (4,), (), (5,)),
    lineage=((2, 0), (4, 3)),
    logprobs=((ROW,), (), (ROW, ROW), (), ()),
    marks=MARKS,
    first_token_s=1.5,
)


def test_a_checkpoint_has_this_form_as_json() -> None:
    assert CHOICES.as_json() == {
        "deltas": [
            [0, "Hel"],
            [1, "Goo"],
            [0, "lo"],
            [1, "", ["stop", 5, 2, "###"]],
            [0, "!", ["length", 5, 3, None]],
        ],
        "token_ids": [[1], [2, 3], [4], [], [5]],
        "lineage": [[2, 0], [4, 3]],
        "logprobs": [
            [[7, -0.25, [[7, -0.25], [3, -1.5]]]],
            [],
            [[7, -0.25, [[7, -0.25], [3, -1.5]]], [7, -0.25, [[7, -0.25], [3, -1.5]]]],
            [],
            [],
        ],
        "first_token_s": 1.5,
    }
    plain = Checkpoint(("a",), ((1,),), ((1, 0),))
    assert plain.as_json() == {"deltas": ["a"], "token_ids": [[1]], "lineage": [[1, 0]]}


@pytest.mark.parametrize("checkpoint", [CHOICES, Checkpoint(("a",), ((1,),), ((1, 0),)), Checkpoint()])
def test_a_checkpoint_is_read_as_it_was_written(checkpoint: Checkpoint) -> None:
    read = Checkpoint.from_json(json.loads(json.dumps(checkpoint.as_json())))
    assert read == checkpoint
    assert read.first_token_s == checkpoint.first_token_s
    assert Checkpoint.from_json(None) is None


def test_what_a_checkpoint_knows() -> None:
    assert (CHOICES.num_deltas, CHOICES.epoch, CHOICES.tokens) == (5, 4, (1, 2, 3, 4, 5))
    assert CHOICES.ends == {0: ChoiceEnd("length", 5, 3), 1: END}
    assert (Checkpoint().num_deltas, Checkpoint().epoch, Checkpoint().ends) == (0, 0, {})
    with pytest.raises(ValueError, match=r"2 deltas .* 1 groups"):
        Checkpoint(("a", "b"), ((1,),))


def test_each_choice_has_its_own_deltas_with_text() -> None:
    assert CHOICES.of_choice(0) == Checkpoint(("Hel", "lo", "!"), ((1,), (4,), (5,)), logprobs=((ROW,), (ROW, ROW), ()))
    assert CHOICES.of_choice(1) == Checkpoint(("Goo",), ((2, 3),), logprobs=((),))
    assert replace(CHOICES, logprobs=()).of_choice(1) == Checkpoint(("Goo",), ((2, 3),))
    plain = Checkpoint(("a",), ((1,),), ((1, 0),))
    assert (plain.of_choice(0), plain.of_choice(1)) == (plain, Checkpoint())


def test_an_attempt_continues_what_was_emitted_or_begins_anew() -> None:
    going_on = CHOICES.continued_by(6)
    assert going_on == replace(CHOICES, lineage=((2, 0), (4, 3), (6, 5)))
    assert going_on.first_token_s == 1.5
    anew = Checkpoint(lineage=((2, 0),), first_token_s=1.5).continued_by(6)
    assert (anew, anew.first_token_s) == (Checkpoint(lineage=((6, 0),)), None)


def test_parts_of_rows_are_read_back() -> None:
    assert read_logprobs([ROW.as_json()]) == (ROW,)
    assert (read_groups(None), read_groups([[], [ROW.as_json()]])) == ((), ((), (ROW,)))
    assert (groups_as_json(()), groups_as_json(((), (ROW,)))) == (None, [[], [ROW.as_json()]])
    assert lineage_from_json([["1", 0], [2, "3"]]) == ((1, 0), (2, 3))
    assert marked_from_json(marked_as_json("a", ChoiceMark(2, END))) == ("a", ChoiceMark(2, END))
    assert marked_from_json([2, "a"]) == ("a", ChoiceMark(2))
    assert deltas_from_json(deltas_as_json(("a", "b"), ())) == (("a", "b"), ())
    assert deltas_from_json([]) == ((), ())


FRAMES = (
    (Frame("j", 1, 0, None, checkpoint=CHOICES.continued_by(1)), "1-0", "s"),
    (Frame("j", 2, 3, None), "2-3", "e"),
    (Frame("j", 2, 3, "d é", (4, 5)), "2-3", "d"),
    (Frame("j", 2, 3, "p", (4,), logprobs=(ROW,)), "2-3", "p"),
    (Frame("j", 2, 3, "", (), mark=ChoiceMark(1, END)), "2-3", "p"),
    (Frame("j", 2, 3, "p", (4,), logprobs=(ROW,), mark=ChoiceMark(1)), "2-3", "p"),
)


@pytest.mark.parametrize(("frame", "entry_id", "kind"), FRAMES)
def test_a_frame_is_read_as_it_was_stored(frame: Frame, entry_id: str, kind: str) -> None:
    stored = frame.as_args()
    assert stored[:2] == (frame.entry_id, kind) == (entry_id, kind)
    given = [part.encode() for part in stored]
    assert read_frame("j", *given) == frame


def test_a_sealed_frame_is_opened_only_in_its_place() -> None:
    seal = TurnedSeal("k")
    text = seal.seal_frame(b"secret", "j", b"1-2")
    ids = seal.seal_frame(b"4,5", "j", b"1-2/ids")
    assert read_frame("j", b"1-2", b"D", text, ids, seal=seal) == Frame("j", 1, 2, "secret", (4, 5))
    assert read_frame("j", b"1-2", b"E", b"", seal=seal) == Frame("j", 1, 2, None)
    for wrong in (
        lambda: read_frame("other", b"1-2", b"D", text, ids, seal=seal),
        lambda: read_frame("j", b"1-3", b"D", text, ids, seal=seal),
        lambda: read_frame("j", b"1-2", b"D", text, text, seal=seal),
        lambda: read_frame("j", b"1-2", b"D", text, ids),
    ):
        with pytest.raises(CannotOpen):
            wrong()


def test_a_cursor_may_have_a_number_of_steps_that_orders_nothing() -> None:
    found = StreamCursor.parse("2-5.17")
    assert (found.epoch, found.seq, found.steps, str(found)) == (2, 5, 17, "2-5.17")
    assert found == StreamCursor(2, 5)
    assert (str(StreamCursor.parse("2-5")), str(StreamCursor.parse("2-5.0"))) == ("2-5", "2-5")
    assert StreamCursor.parse("2-5.999999999").steps == 999_999_999
    for wrong in ("2-5.", "2-5.x", "2-5.-1", "2-5.1000000000", "2-5.1.1", "2-5.٣"):
        with pytest.raises(ValueError, match=r" 1-42$"):
            StreamCursor.parse(wrong)
    assert StreamCursor.before(3) == StreamCursor(2, HIGHEST_SEQ) < StreamCursor(3)
    assert (HIGHEST_SEQ, stream_key("j")) == (18_446_744_073_709_551_615, "headrace:stream:j")


def test_a_start_leads_behind_the_deltas_that_it_carries() -> None:
    start = Frame("j", 6, 0, None, checkpoint=CHOICES.continued_by(6))
    assert start.cursor == StreamCursor(6, 5)
    assert not start.is_end
    assert StreamCursor(4, 2).leads_to(start)
    assert StreamCursor(6, 4).leads_to(start)
    assert not StreamCursor(6, 5).leads_to(start)
    assert StreamCursor(6, 5).leads_to(Frame("j", 6, 6, "a"))


def test_recovered_choices_keep_their_marks_and_an_end_without_tokens() -> None:
    ended = Frame("j", 1, 3, "", (), mark=ChoiceMark(1, END))
    frames = [
        Frame("j", 1, 1, "a", (1,), mark=ChoiceMark(0), age_s=2.0),
        Frame("j", 1, 2, "b", (2,), mark=ChoiceMark(1)),
        ended,
        Frame("j", 1, 4, "", (), mark=ChoiceMark(0)),
        Frame("j", 1, 4, "c", (3,), mark=ChoiceMark(0)),
    ]
    found = recover(frames, job_age_s=5.0)
    assert found == Checkpoint(
        ("a", "b", "", "c"),
        ((1,), (2,), (), (3,)),
        ((1, 0),),
        marks=(ChoiceMark(0), ChoiceMark(1), ChoiceMark(1, END), ChoiceMark(0)),
    )
    assert found.first_token_s == 3.0
    assert recover(frames, job_age_s=1.0).first_token_s == 0.0
    assert recover([replace(frames[0], age_s=None)], job_age_s=5.0).first_token_s is None


def test_recovered_log_probabilities_stand_beside_the_deltas_that_had_none() -> None:
    start = Frame("j", 2, 0, None, checkpoint=Checkpoint(("a",), ((1,),), ((1, 0), (2, 1)), first_token_s=0.5))
    found = recover([start, Frame("j", 2, 2, "b", (2,), logprobs=(ROW,))], job_age_s=9.0)
    assert found == Checkpoint(("a", "b"), ((1,), (2,)), ((1, 0), (2, 1)), ((), (ROW,)))
    assert found.first_token_s == 0.5
