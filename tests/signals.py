"""Made audio: tones with silences between them, and files of them."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import soundfile

Samples = npt.NDArray[np.float32]


def tone(seconds: float, rate: int, *, hz: float = 440.0) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def spoken(lengths: Sequence[float], rate: int, *, pause_s: float = 0.5) -> Samples:
    """Tones of these lengths in seconds, each of another pitch, with a pause after each."""
    pause = np.zeros(round(pause_s * rate), np.float32)
    parts = [part for at, length in enumerate(lengths) for part in (tone(length, rate, hz=200 + 70 * at), pause)]
    return np.concatenate(parts)


def audio_file(samples: Samples, rate: int = 16_000, *, kind: str = "WAV", channels: int = 1) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.repeat(samples[:, None], channels, axis=1), rate, format=kind)
    return out.getvalue()


def ten_hours() -> bytes:
    """A second, whose header says that it is ten hours."""
    flac = bytearray(audio_file(tone(1, 16_000), kind="FLAC"))
    # The number of samples is the last 36 bits of these bytes.
    flac[18:26] = (int.from_bytes(flac[18:26], "big") >> 36 << 36 | 10 * 3600 * 16_000).to_bytes(8, "big")
    return bytes(flac)
