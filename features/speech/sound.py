"""Sound as bytes: samples to the formats of files, whole and while they are made, and the pieces of a stream.

Samples are of one channel, little-endian signed 16 bits (``pcm``). A piece of a stream is a FLAC file of its own, which
loses nothing, so that whoever reads it has the samples again.
"""

import base64
import io
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import soundfile

from headrace.features.speech.task import SoundFormat

_KINDS: Final[Mapping[SoundFormat, tuple[str, str]]] = {
    SoundFormat.MP3: ("MP3", "MPEG_LAYER_III"),
    SoundFormat.OPUS: ("OGG", "OPUS"),
    SoundFormat.WAV: ("WAV", "PCM_16"),
    SoundFormat.FLAC: ("FLAC", "PCM_16"),
}
# A stream has no table of its frames, and readers then take its length from the first ones: so all have one rate.
_OPTIONS: Final[Mapping[SoundFormat, dict[str, Any]]] = {
    SoundFormat.MP3: {"bitrate_mode": "CONSTANT", "compression_level": 0.5},
}
_BYTES_A_SAMPLE: Final = 2
_UNKNOWN: Final = 0xFFFFFFFF
_MPEG_KBPS: Final = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
"""Of layer III by the index in a frame's header: from 32 kHz, and below."""

_STEP: Final = 65_536
"""Samples that are written at once. libsndfile's Opus takes them on the stack."""


def num_samples(pcm: bytes | bytearray) -> int:
    """Return how many samples there are."""
    return len(pcm) // _BYTES_A_SAMPLE


def silence(seconds: float, rate: int) -> bytes:
    """Return samples of nothing."""
    return bytes(_BYTES_A_SAMPLE * round(seconds * rate))


def to_pcm(samples: "np.typing.NDArray[np.float32]") -> bytes:
    """Return samples from -1 to 1 as 16 bits; what is louder is cut."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def encoded(pcm: bytes, rate: int, kind: SoundFormat) -> bytes:
    """Return a file of these samples. The same samples give the same bytes."""
    if kind is SoundFormat.PCM:
        return pcm
    sink = io.BytesIO()
    with _opened(sink, rate, kind) as file:
        _write_samples(file, pcm)
    return _with_fixed_serial(sink.getvalue()) if kind is SoundFormat.OPUS else sink.getvalue()


def decoded(content: bytes, rate: int, kind: SoundFormat) -> bytes:
    """Return the samples of a file that ``encoded`` made."""
    if kind is SoundFormat.PCM:
        return content
    samples, found = soundfile.read(io.BytesIO(content), dtype="int16")
    if found != rate:
        raise ValueError(f"the sound has {found} samples a second, not {rate}")
    return bytes(samples.astype("<i2").tobytes())


def as_delta(pcm: bytes, rate: int) -> str:
    """Return a piece of a stream: a FLAC file in base64."""
    return base64.b64encode(encoded(pcm, rate, SoundFormat.FLAC)).decode()


def of_delta(delta: str, rate: int) -> bytes:
    """Return the samples of ``as_delta``. Raises ValueError for what is none."""
    try:
        return decoded(base64.b64decode(delta, validate=True), rate, SoundFormat.FLAC)
    except soundfile.LibsndfileError as error:
        raise ValueError("not a FLAC file") from error


class SoundStream:
    """Encodes samples as they come. A header that has the length of the sound says that it is not known."""

    def __init__(self, rate: int, kind: SoundFormat) -> None:
        self._rate = rate
        self._begins = kind is SoundFormat.MP3
        self._sink = _Sink()
        self._file: soundfile.SoundFile | None = None
        if kind is SoundFormat.WAV:
            self._sink.write(_wav_header(rate))
        elif kind is not SoundFormat.PCM:
            self._file = _opened(self._sink, rate, kind)

    def add(self, pcm: bytes) -> bytes:
        """Return the bytes that can be sent after these samples."""
        if self._file is None:
            self._sink.write(pcm)
        else:
            _write_samples(self._file, pcm)
            self._file.flush()
        return self._taken()

    def finish(self) -> bytes:
        """Return the last bytes."""
        if self._file is not None:
            self._file.close()
        return self._taken()

    def _taken(self) -> bytes:
        """Return the new bytes, without the first frame of an MP3: it says how long the sound was until now."""
        found = self._sink.take()
        if self._begins and found:
            self._begins = False
            return found[_frame_bytes(found, self._rate) :]
        return found


class _Sink:
    """A file that keeps only what was not taken yet. What is written over taken bytes, as a header, is dropped."""

    def __init__(self) -> None:
        self._taken = 0
        self._left = bytearray()
        self._at = 0

    def take(self) -> bytes:
        found = bytes(self._left)
        self._taken += len(found)
        self._left.clear()
        return found

    def write(self, data: bytes) -> int:
        kept = bytes(data)[max(0, self._taken - self._at) :]
        first = max(0, self._at - self._taken)
        self._left[first : first + len(kept)] = kept
        self._at += len(data)
        return len(data)

    def read(self, _size: int = -1) -> bytes:
        return b""

    def readinto(self, _buffer: object) -> int:
        return 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._taken + len(self._left)}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Do nothing."""


def _opened(sink: "io.BytesIO | _Sink", rate: int, kind: SoundFormat) -> soundfile.SoundFile:
    name, subtype = _KINDS[kind]
    return soundfile.SoundFile(sink, "w", rate, 1, format=name, subtype=subtype, **_OPTIONS.get(kind, {}))


def _write_samples(file: soundfile.SoundFile, pcm: bytes) -> None:
    samples = np.frombuffer(pcm, "<i2")
    for at in range(0, len(samples), _STEP):
        file.write(samples[at : at + _STEP])


def _frame_bytes(mp3: bytes, rate: int) -> int:
    """Return the length of the first frame of layer III."""
    kbps, padding = _MPEG_KBPS[rate < 32_000][mp3[2] >> 4], (mp3[2] >> 1) & 1
    return (72 if rate < 32_000 else 144) * kbps * 1000 // rate + padding


def _wav_header(rate: int) -> bytes:
    size = _BYTES_A_SAMPLE
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * size, size, 8 * size)
    return struct.pack("<4sI4s", b"RIFF", _UNKNOWN, b"WAVE") + form + struct.pack("<4sI", b"data", _UNKNOWN)


def _with_fixed_serial(ogg: bytes) -> bytes:
    """Return an Ogg stream with 1 as its serial number: libsndfile draws one, and files of the same sound would differ.

    Each page has a checksum, the CRC-32 of RFC 3533, which is not zlib's.
    """
    made, at = bytearray(ogg), 0
    while at < len(made):
        num_segments = made[at + 26]
        end = at + 27 + num_segments + sum(made[at + 27 : at + 27 + num_segments])
        made[at + 14 : at + 18] = struct.pack("<I", 1)
        made[at + 22 : at + 26] = bytes(4)
        checksum = 0
        for byte in made[at:end]:
            checksum = ((checksum << 8) & _UNKNOWN) ^ _CRC[(checksum >> 24) ^ byte]
        made[at + 22 : at + 26] = struct.pack("<I", checksum)
        at = end
    return bytes(made)


def _crc_of(byte: int) -> int:
    found = byte << 24
    for _ in range(8):
        found = ((found << 1) ^ (0x04C11DB7 if found & 0x80000000 else 0)) & _UNKNOWN
    return found


_CRC: Final = tuple(map(_crc_of, range(256)))
