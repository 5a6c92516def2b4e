"""Chunks: no longer than a window, without gaps, cut where it is quiet."""

import numpy as np
import pytest

from headrace.features.transcribe.cutting import Chunk, chunks, cut_at, resampled
from tests.signals import spoken, tone

RATE = 1000
WINDOW_S = 30


def blocks(samples: np.ndarray, size: int = 7001) -> list[np.ndarray]:
    return [samples[at : at + size] for at in range(0, len(samples), size)]


@pytest.mark.parametrize("seconds", [0.5, 30, 30.001, 95])
def test_chunks_are_the_audio_without_gaps(seconds: float) -> None:
    samples = tone(seconds, RATE, hz=40)
    found = [*chunks(blocks(samples), RATE, WINDOW_S)]
    assert np.array_equal(np.concatenate([one.samples for one in found]), samples)
    starts = np.cumsum([0, *(len(one.samples) for one in found)])[:-1] / RATE
    assert [one.start_s for one in found] == pytest.approx(starts)
    assert max(len(one.samples) for one in found) <= WINDOW_S * RATE
    assert all(len(one.samples) > WINDOW_S * RATE / 2 for one in found[:-1])
    assert len(found) == 1 or seconds > WINDOW_S, "a full window is one chunk"


def test_cuts_are_in_the_pauses() -> None:
    samples = spoken([8, 9, 7, 11, 4, 12, 6], RATE)
    found = [*chunks(blocks(samples), RATE, WINDOW_S)]
    assert len(found) > 1
    for one in found[1:]:
        at = round(one.start_s * RATE)
        assert not samples[at - 100 : at + 100].any(), f"{one.start_s} s is in no pause"


def test_the_longest_silence_wins_and_without_one_the_quietest_place() -> None:
    whole = tone(WINDOW_S, RATE, hz=40)
    whole[18_000:18_300] = 0
    whole[22_000:22_600] = 0
    whole[26_000:26_400] = 0
    assert cut_at(whole, RATE) == pytest.approx(22_300, abs=40)
    hum = tone(WINDOW_S, RATE, hz=40)
    hum[20_000:20_400] *= 0.3
    assert 20_000 <= cut_at(hum, RATE) <= 20_400
    hum[3000:4000] = 0  # in the first half
    assert 20_000 <= cut_at(hum, RATE) <= 20_400


def test_silence_is_known_and_nearly_nothing_is_cut() -> None:
    assert Chunk(0, np.zeros(9, np.float32)).is_silent
    assert not Chunk(0, tone(0.1, RATE, hz=40)).is_silent
    assert cut_at(np.zeros(3, np.float32), RATE) == 3


@pytest.mark.parametrize(("rate", "wanted"), [(44_100, 16_000), (8000, 16_000), (48_000, 16_000), (16_000, 16_000)])
def test_another_rate_has_the_same_sound(rate: int, wanted: int) -> None:
    """A tone stays that tone; one that the lower rate cannot have is gone, not heard as another one."""
    fade = np.hanning(rate).astype(np.float32)
    made = resampled(tone(1, rate, hz=1000) * fade, rate, wanted)
    expected = tone(1, wanted, hz=1000) * np.hanning(wanted)
    assert len(made) == wanted
    assert np.abs(made - expected).max() < 1e-3
    if rate > 2 * wanted:
        high = resampled(tone(1, rate, hz=9000) * fade, rate, wanted)
        assert np.abs(high).max() < 1e-3
