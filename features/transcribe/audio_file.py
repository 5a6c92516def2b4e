"""Audio files: WAV, FLAC, OGG (Vorbis, Opus) and MP3. ``inspect`` reads the header and decodes only the last moment.

Nothing here trusts the name or the media type of a file: the format is that of its content.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
import soundfile

from headrace.store.errors import InvalidRequest

Samples = npt.NDArray[np.float32]
"""Samples of one channel, from -1 to 1."""

FORMATS: Final = frozenset({"WAV", "WAVEX", "FLAC", "OGG", "MP3"})
_NAMES = "WAV, FLAC, OGG or MP3"
_BLOCK_S = 10
_TAIL_FRAMES = 64
_UNKNOWN_SIZE = 0xFFFFFFFF
"""The size in the header of a WAV that was written to a pipe."""


@dataclass(frozen=True, slots=True)
class AudioBounds:
    """What is accepted. ``most_s``: the longest duration in seconds; ``least_hz``, ``most_hz``: the sample rate."""

    most_s: float
    most_channels: int
    least_hz: int
    most_hz: int


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file holds. ``seconds``: its duration; ``rate``: frames a second, each with a sample of each channel."""

    seconds: float
    num_frames: int
    rate: int
    num_channels: int


def inspect(content: BinaryIO, bounds: AudioBounds, param: str) -> AudioInfo:
    """Return what a file holds. ``content`` can seek. Decodes its last frames alone, whatever its length.

    Raises InvalidRequest that names ``param``: ``unsupported_audio`` for another format, ``audio_empty``,
    ``audio_too_long``, ``audio_truncated`` if frames are missing that the header announces, and ``invalid_value`` for
    channels or a sample rate outside the bounds. MP3 and OGG announce no length: cut off, they are shorter audio.
    """
    try:
        with _opened(content) as file:
            info = AudioInfo(file.frames / max(1, file.samplerate), file.frames, file.samplerate, file.channels)
            if file.format not in FORMATS:
                raise _refused(f"{file.format} files are not read: send {_NAMES}", "unsupported_audio", param)
            if file.format in ("WAV", "WAVEX"):
                _check_data_size(content, param)
            _check_bounds(info, bounds, param)
            _check_tail(file, param)
    except soundfile.LibsndfileError:
        raise _refused(f"this is not audio that can be read: send {_NAMES}", "unsupported_audio", param) from None
    return info


def read_mono(content: BinaryIO, num_frames: int) -> Iterator[Samples]:
    """Yield the samples in blocks of some seconds, the mean of all channels. ``num_frames``: as ``inspect`` found.

    Raises InvalidRequest (``audio_truncated``) if the file ends before, or cannot be decoded.
    """
    num_read = 0
    try:
        with _opened(content) as file:
            while num_read < num_frames:
                most = min(_BLOCK_S * file.samplerate, num_frames - num_read)
                block = file.read(most, dtype="float32", always_2d=True)
                if not len(block):
                    break
                num_read += len(block)
                yield np.nan_to_num(block.mean(axis=1, dtype=np.float32))
    except soundfile.LibsndfileError:
        num_read = -1
    if num_read != num_frames:
        raise _refused("the audio ends before its end: part of the file is missing or damaged", "audio_truncated", None)


@contextmanager
def _opened(content: BinaryIO) -> Iterator[soundfile.SoundFile]:
    content.seek(0)
    with soundfile.SoundFile(content) as file:
        yield file


def _check_bounds(info: AudioInfo, bounds: AudioBounds, param: str) -> None:
    if not 1 <= info.num_channels <= bounds.most_channels:
        message = f"the audio has {info.num_channels} channels, and at most {bounds.most_channels} are accepted"
        raise _refused(f"{message}: mix it down", "invalid_value", param)
    if not bounds.least_hz <= info.rate <= bounds.most_hz:
        message = f"the audio has a sample rate of {info.rate} Hz, and {bounds.least_hz} to {bounds.most_hz} are"
        raise _refused(f"{message} accepted: resample it", "invalid_value", param)
    if info.num_frames <= 0:
        raise _refused("the audio is 0 seconds long: send one with sound", "audio_empty", param)
    if info.seconds > bounds.most_s:
        message = f"the audio is {info.seconds:.0f} s long, and at most {bounds.most_s:g} s are accepted"
        raise _refused(f"{message}: divide it", "audio_too_long", param)


def _check_data_size(content: BinaryIO, param: str) -> None:
    """Refuse a WAV whose data chunk is longer than the file: the decoder would silently take what is there."""
    num_bytes = content.seek(0, io.SEEK_END)
    at = 12
    while at + 8 <= num_bytes:
        content.seek(at)
        header = content.read(8)
        size = int.from_bytes(header[4:], "little")
        if header[:4] == b"data":
            if size != _UNKNOWN_SIZE and at + 8 + size > num_bytes:
                raise _truncated(param)
            return
        at += 8 + size + size % 2


def _check_tail(file: soundfile.SoundFile, param: str) -> None:
    """Decode the last frames: they are missing from a file that was cut off."""
    first = max(0, file.frames - _TAIL_FRAMES)
    try:
        file.seek(first)
        num_read = len(file.read(_TAIL_FRAMES, dtype="float32", always_2d=True))
    except soundfile.LibsndfileError:
        num_read = 0
    if num_read < file.frames - first:
        raise _truncated(param)


def _truncated(param: str) -> InvalidRequest:
    return _refused("the audio is cut off: part of the file is missing, send it again", "audio_truncated", param)


def _refused(message: str, code: str, param: str | None) -> InvalidRequest:
    return InvalidRequest(message, code=code, param=param)
