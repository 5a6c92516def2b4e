from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from headrace.models.fakes.fake import EOS, next_token
from tests.chaos.journal import Journal, read_journal
from tests.chaos.nemesis import KINDS, Nemesis, Strike, schedule
from tests.chaos.oracle import answer


def test_a_schedule_is_a_function_of_its_seed() -> None:
    assert schedule(7, 120) == schedule(7, 120)
    assert schedule(7, 120) != schedule(8, 120)


def test_every_fault_comes_whatever_the_duration() -> None:
    for duration_s in (20, 120, 900):
        assert {strike.fault for strike in schedule(5, duration_s)} == set(KINDS)


def test_a_lane_strikes_one_thing_at_a_time_and_ends_in_time() -> None:
    strikes = schedule(11, 600)
    assert len(strikes) > 100
    for lane in ("processes", "services"):
        ours = [strike for strike in strikes if KINDS[strike.fault].lane == lane]
        assert all(a.at_s + KINDS[a.fault].for_s <= b.at_s for a, b in pairwise(ours))
        assert ours[-1].at_s + KINDS[ours[-1].fault].for_s <= 600
    assert all(strike.target in KINDS[strike.fault].targets for strike in strikes)


def test_only_what_is_asked_for_is_broken() -> None:
    assert {strike.fault for strike in schedule(1, 60, ["redis_wipe"])} == {"redis_wipe"}


def test_a_strike_goes_on_until_its_fault_ends_and_the_next_waits_for_it(tmp_path: Path) -> None:
    now = 0.0
    turns: list[str] = []

    def carry(strike: Strike) -> Iterator[None]:
        for _ in range(3):
            turns.append(strike.target)
            yield

    strikes = [Strike(1.0, "kill_api", "first", 1.0), Strike(1.5, "kill_api", "second", 1.0)]
    journal = Journal(tmp_path / "journal.jsonl")
    nemesis = Nemesis(strikes, carry, journal, clock=lambda: now)
    nemesis.turn()
    assert turns == []
    now = 2.0
    while not nemesis.is_done:
        nemesis.turn()
    journal.close()
    assert turns == ["first"] * 3 + ["second"] * 3
    kinds = [event["kind"] for event in read_journal(tmp_path / "journal.jsonl")]
    assert kinds == ["strike", "strike_over", "strike", "strike_over"]


def test_the_oracle_knows_the_fakes_answers() -> None:
    for n in range(40):
        prompt, most = f"run 1, order {n}: tell me of bees." + " Go on." * (n % 6), (8, 24, 60, 160)[n % 4]
        said: list[int] = []
        while len(said) < most and (token := next_token(list(prompt.encode()), said)) != EOS:
            said.append(token)
        assert bytes(said).decode() == answer(prompt, most)
        assert answer(prompt, 400, ends=False).startswith(answer(prompt, 400))
        assert len(answer(prompt, 400, ends=False)) == 400
