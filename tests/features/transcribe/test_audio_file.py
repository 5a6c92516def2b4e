"""What is accepted as audio, and what is refused before anything is decoded."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile

from headrace.features.transcribe.audio_file import AudioBounds, AudioInfo, inspect, read_mono
from headrace.store.errors import InvalidRequest
from tests.signals import audio_file, ten_hours, tone

BOUNDS = AudioBounds(most_s=60, most_channels=2, least_hz=8000, most_hz=48_000)
SECOND = tone(1, 16_000)


def refusal(content: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        inspect(io.BytesIO(content), BOUNDS, "file")
    assert caught.value.param == "file"
    return caught.value


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "FLAC", "OGG", "MP3"])
def test_each_format_is_read_whole(kind: str) -> None:
    content = io.BytesIO(audio_file(tone(25, 16_000), kind=kind, channels=2))
    info = inspect(content, BOUNDS, "file")
    assert (info.rate, info.num_channels) == (16_000, 2)
    samples = np.concatenate([*read_mono(content, info.num_frames)])
    assert len(samples) == info.num_frames
    # Encoders of lossy formats put some silence around the sound.
    assert info.seconds == pytest.approx(25, abs=0.2)
    assert np.sqrt(np.square(samples).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def cases() -> dict[str, tuple[bytes, str]]:
    wav, flac = audio_file(SECOND), audio_file(SECOND, kind="FLAC")
    return {
        "a text named .wav": (b"RIFF is what I am not. " * 20, "unsupported_audio"),
        "nothing": (b"", "unsupported_audio"),
        "a header alone": (wav[:44], "audio_truncated"),
        "another format": (audio_file(SECOND, kind="AIFF"), "unsupported_audio"),
        "no seconds": (audio_file(SECOND[:0]), "audio_empty"),
        "ten hours": (ten_hours(), "audio_too_long"),
        "half a WAV": (wav[: len(wav) // 2], "audio_truncated"),
        "half a FLAC": (flac[: len(flac) // 2], "audio_truncated"),
        "three channels": (audio_file(SECOND, channels=3), "invalid_value"),
        "too few samples a second": (audio_file(SECOND, 4000), "invalid_value"),
        "too many samples a second": (audio_file(SECOND, 96_000), "invalid_value"),
    }


def test_what_is_not_accepted_is_named() -> None:
    found = {name: refusal(content).code for name, (content, _) in cases().items()}
    assert found == {name: code for name, (_, code) in cases().items()}


def test_a_file_that_ends_early_is_noticed_while_it_is_read() -> None:
    content = audio_file(tone(25, 16_000), kind="FLAC")
    info = inspect(io.BytesIO(content), BOUNDS, "file")
    for damaged in (content[: len(content) * 3 // 4], content[:2000] + b"\0" * 4000 + content[6000:]):
        with pytest.raises(InvalidRequest) as caught:
            list(read_mono(io.BytesIO(damaged), info.num_frames))
        assert caught.value.code == "audio_truncated"


def test_no_more_is_read_than_was_found_and_channels_become_their_mean() -> None:
    left = tone(25, 16_000)
    stereo = io.BytesIO()
    soundfile.write(stereo, np.stack([left, np.zeros_like(left)], axis=1), 16_000, format="WAV", subtype="FLOAT")
    for num_frames in (1, 160_000, 160_001, 400_000):
        blocks = [*read_mono(stereo, num_frames)]
        assert np.array_equal(np.concatenate(blocks), left[:num_frames] / 2)
        assert len(blocks) == -(-num_frames // 160_000)


def test_a_refusal_names_the_given_and_the_accepted_formats() -> None:
    said = {name: refusal(content).message for name, (content, _) in cases().items()}
    named = {
        "a text named .wav": "WAV, FLAC, OGG or MP3",
        "nothing": "WAV, FLAC, OGG or MP3",
        "a header alone": "cut off",
        "another format": "AIFF",
        "no seconds": "0 seconds",
        "ten hours": "at most 60 s",
        "half a WAV": "cut off",
        "half a FLAC": "cut off",
        "three channels": "at most 2 ",
        "too few samples a second": "4000 Hz, and 8000 to 48000",
        "too many samples a second": "96000 Hz, and 8000 to 48000",
    }
    assert said.keys() == named.keys()
    assert [case for case in said if named[case] not in said[case]] == []
    for rate in (8000, 48_000):
        most = io.BytesIO(audio_file(np.zeros(60 * rate, np.float32), rate, channels=2))
        assert inspect(most, BOUNDS, "file") == AudioInfo(60.0, 60 * rate, rate, 2)


def test_an_unknown_size_is_the_rest_of_the_file() -> None:
    """As a program writes it that puts a WAV into a pipe."""
    wav: Any = bytearray(audio_file(SECOND))
    at = wav.index(b"data") + 4
    wav[at : at + 4] = b"\xff" * 4
    assert inspect(io.BytesIO(bytes(wav)), BOUNDS, "file") == AudioInfo(1.0, 16_000, 16_000, 1)
