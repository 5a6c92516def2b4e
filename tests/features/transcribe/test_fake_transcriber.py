"""The transcriber without weights."""

import struct

from headrace.features.transcribe.fake_transcriber import FakeTranscriber
from headrace.features.transcribe.transcription import ChunkOptions, ChunkTranscript, TokenSegment
from headrace.models.engine.requests import EncodeRow


def test_the_fake_transcriber_says_how_long_and_how_loud() -> None:
    chunks = (struct.pack("<3f", 0.1, -0.5, 0.2) * 8000, b"")
    found = FakeTranscriber().run(
        [EncodeRow("r", (0,), ChunkOptions(chunks, language), index) for index, language in ((0, "de"), (1, None))]
    )
    assert [ChunkTranscript.from_bytes(one or b"") for one in found] == [
        ChunkTranscript(2, (TokenSegment(0, 1500, tuple(b" 1500 ms at 50.")),)),
        ChunkTranscript(1, (TokenSegment(0, 0, tuple(b" 0 ms at 0.")),)),
    ]
