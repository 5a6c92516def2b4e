"""A transcript as it grows, chunk by chunk: its texts, times, numbers and what the next attempt continues."""

from headrace.features.transcribe.model import Transcript
from headrace.features.transcribe.task import Segment
from headrace.features.transcribe.transcription import ChunkTranscript, TokenSegment
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.streams.checkpoints import Checkpoint

START = Checkpoint(lineage=((1, 0), (2, 0)))


def chunk(language: int, *segments: tuple[int, int, str]) -> ChunkTranscript:
    return ChunkTranscript(
        language, tuple(TokenSegment(begin, end, tuple(text.encode())) for begin, end, text in segments)
    )


def test_only_the_first_text_loses_its_space_and_no_segment_ends_behind_its_chunk() -> None:
    made = Transcript(ByteTokenizer(), START, first_text_s=1.5)
    assert made.checkpoint is None
    first = chunk(7, (0, 500, " "), (500, 1250, " One"), (1250, 99_000, " two."))
    assert made.add(0.0, 2.0, first) == "One two."
    assert made.add(2.0, 4.0, chunk(8, (0, 1000, " Three."))) == " Three."
    assert made.add(4.0, 5.0, ChunkTranscript()) == ""
    assert made.segments == [
        Segment(start=0.0, end=0.5, text=""),
        Segment(start=0.5, end=1.25, text="One"),
        Segment(start=1.25, end=2.0, text=" two."),
        Segment(start=2.0, end=3.0, text=" Three."),
    ]
    assert (made.language_id, made.num_tokens) == (7, 1 + 4 + 5 + 7)
    kept = made.checkpoint
    assert kept is not None
    assert (kept.deltas, kept.lineage, kept.first_token_s) == (("One two.", " Three.", ""), START.lineage, 1.5)
    assert kept.token_ids == (first.numbers, chunk(8, (0, 1000, " Three.")).numbers, (0,))


def test_the_language_is_that_of_the_first_chunk_that_has_one() -> None:
    made = Transcript(ByteTokenizer(), START)
    made.add(0.0, 1.0, ChunkTranscript())
    made.add(1.0, 2.0, chunk(9, (333, 666, "x")))
    assert (made.language_id, made.segments) == (9, [Segment(start=1.333, end=1.666, text="x")])
