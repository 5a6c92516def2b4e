"""Transcripts as numbers, and where they come from."""

import struct

import pytest

from headrace.features.transcribe.transcription import ChunkTranscript, TokenSegment


def test_a_transcript_is_numbers_and_comes_back() -> None:
    whole = ChunkTranscript(7, (TokenSegment(10, 250, (1, 2)), TokenSegment(250, 300, ())))
    assert whole.numbers == (7, 10, 250, 2, 1, 2, 250, 300, 0)
    assert whole.as_bytes == struct.pack("<9i", *whole.numbers)
    assert ChunkTranscript.from_bytes(whole.as_bytes) == ChunkTranscript.of(whole.numbers) == whole
    assert ChunkTranscript.of([0]) == ChunkTranscript()
    for wrong in ([], [7, 1], [7, 1, 2], [7, 1, 2, 3], [7, 1, 2, 2, 5], [7, 1, 2, -1]):
        with pytest.raises(ValueError, match=r"a segment is cut off|at least one number"):
            ChunkTranscript.of(wrong)
