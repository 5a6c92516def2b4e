"""Cuts audio at silences into chunks of at most a window, and gives each chunk the model's sample rate. Pure functions.

0 s                    15 s        ▁▁▁   30 s          ▁▁▁: the longest silence of the second half
├── chunk 1 ────────────────────────┤
                                    ├── chunk 2 ──── …
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Final

import numpy as np

from headrace.features.transcribe.audio_file import Samples

FRAME_S: Final = 0.02
_SHORTEST_SILENCE_S = 0.2
_SILENT_SHARE = 0.03
"""A frame is silent if its level is below this share of the loud frames' level: 30 dB."""

NO_SOUND: Final = 1e-4
"""A chunk whose samples are all below this is silence: 80 dB under the loudest sample that there can be."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of the audio. ``start_s``: where it begins; the samples are at the rate of the audio."""

    start_s: float
    samples: Samples

    @property
    def is_silent(self) -> bool:
        """True if it holds no sound."""
        return not len(self.samples) or float(np.abs(self.samples).max()) < NO_SOUND


def chunks(blocks: Iterable[Samples], rate: int, window_s: float) -> Iterator[Chunk]:
    """Yield the audio in chunks of at most ``window_s`` seconds, without gaps. No more than a window is kept."""
    window = int(window_s * rate)
    held: list[Samples] = []
    num_held = start = 0
    for block in blocks:
        held.append(block)
        num_held += len(block)
        while num_held > window:
            samples = np.concatenate(held)
            length = cut_at(samples[:window], rate)
            yield Chunk(start / rate, samples[:length])
            start += length
            held, num_held = [samples[length:]], num_held - length
    if num_held:
        yield Chunk(start / rate, np.concatenate(held))


def cut_at(window: Samples, rate: int) -> int:
    """Return where to cut a full window: a number of samples, more than half of them.

    In the middle of the longest silence of the second half; without one of 0.2 s, where 0.2 s are the quietest.
    """
    frame = max(1, int(FRAME_S * rate))
    num_frames = len(window) // frame
    if num_frames < 4:
        return len(window)
    levels = np.sqrt(np.square(window[: num_frames * frame].reshape(num_frames, frame)).mean(axis=1))
    first = num_frames // 2 + 1
    later = levels[first:]
    shortest = max(1, min(len(later), round(_SHORTEST_SILENCE_S / FRAME_S)))
    silence = _longest_run(later <= _SILENT_SHARE * np.percentile(levels, 95))
    if silence is None or silence[1] < shortest:
        sums = np.convolve(later, np.ones(shortest), "valid")
        silence = int(sums.argmin()), shortest
    begin, length = silence
    return (first + begin + length // 2) * frame


def _longest_run(flags: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> tuple[int, int] | None:
    """Return the beginning and the length of the longest run of True, the later one of two; None without any."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    begins, ends = edges[::2], edges[1::2]
    if not len(begins):
        return None
    lengths = ends - begins
    best = len(lengths) - 1 - int(lengths[::-1].argmax())
    return int(begins[best]), int(lengths[best])


def resampled(samples: Samples, rate: int, wanted: int) -> Samples:
    """Return the samples of a chunk at another rate, without frequencies that the lower rate cannot have.

    By the Fourier transform of the whole chunk: its ends should be quiet, as where ``cut_at`` cuts.
    """
    if rate == wanted:
        return samples
    step = rate // gcd(rate, wanted)
    length = len(samples) + -len(samples) % step
    spectrum = np.fft.rfft(samples, length)
    num_wanted = length * wanted // rate
    made = np.fft.irfft(spectrum[: num_wanted // 2 + 1], num_wanted) * (num_wanted / length)
    return made[: round(len(samples) * wanted / rate)].astype(np.float32)
