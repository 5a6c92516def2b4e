"""A transcriber without weights: it says how long each chunk is, and how loud."""

import struct
import time
from collections.abc import Callable, Sequence

from headrace.features.transcribe.transcriber_folder import FAKE
from headrace.features.transcribe.transcription import ChunkOptions, ChunkTranscript, TokenSegment
from headrace.models.engine.requests import EncodeRow


class FakeTranscriber:
    """An ``Encoder`` of chunks of audio. Its tokens are bytes. A pass takes ``step_s``."""

    context_window = FAKE.num_positions

    def __init__(self, *, step_s: float = 0.0, sleep: Callable[[float], object] = time.sleep) -> None:
        self.step_s = step_s
        self.sleep = sleep

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return the transcript of each chunk."""
        if self.step_s:
            self.sleep(self.step_s)
        return [_said(row.options, row.index).as_bytes for row in rows]


def _said(options: ChunkOptions, index: int) -> ChunkTranscript:
    packed = options.chunks[index]
    samples = struct.unpack(f"<{len(packed) // 4}f", packed)
    milliseconds = round(1000 * len(samples) / FAKE.rate)
    level = round(100 * max(map(abs, samples), default=0.0))
    text = f" {milliseconds} ms at {level}."
    languages = {name: token for token, name in FAKE.languages.items()}
    segment = TokenSegment(0, milliseconds, tuple(text.encode()))
    return ChunkTranscript(languages[options.language or "en"], (segment,))
