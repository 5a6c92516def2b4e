"""Transcripts as the API of OpenAI shows them, in JSON and in text."""

from headrace.features.transcribe.transcript_answer import TranscriptAnswer, as_text
from headrace.store.jobs.jobs import Job
from tests.producer_api.answered_jobs import ended, job_of


def transcript(*segments: tuple[float, float, str]) -> Job:
    told = [{"start": start, "end": end, "text": text} for start, end, text in segments]
    return job_of("All of it.", duration=61.2, language="en", segments=told)


def test_a_transcript_in_json() -> None:
    job = transcript((0.0, 1.5, " a"))
    assert TranscriptAnswer().full_answer(job) == {"text": "All of it.", "usage": {"type": "duration", "seconds": 62}}
    assert TranscriptAnswer("verbose_json").full_answer(job) == {
        "task": "transcribe",
        "language": "en",
        "duration": 61.2,
        "text": "All of it.",
        "usage": {"type": "duration", "seconds": 62},
        "segments": [{"id": 0, "seek": 0, "temperature": 0.0, "start": 0.0, "end": 1.5, "text": " a"}],
    }
    assert TranscriptAnswer().pieces("a") == [{"type": "transcript.text.delta", "delta": "a"}]
    assert TranscriptAnswer().closing(job) == [
        {
            "type": "transcript.text.done",
            "text": "All of it.",
            "usage": {
                "type": "tokens",
                "input_tokens": 5,
                "output_tokens": 3,
                "total_tokens": 8,
                "input_token_details": {"audio_tokens": 5, "text_tokens": 0},
            },
        }
    ]
    bare = ended("x", usage=None)
    assert TranscriptAnswer().closing(bare)[0]["usage"] == {
        "type": "tokens",
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_token_details": {"audio_tokens": 0, "text_tokens": 0},
    }


def test_a_transcript_in_text() -> None:
    job = transcript((0.0, 1.9996, " one\n two"), (2.0, 3.0, " "), (59.9, 3661.5, "a --> <b> & c"))
    assert as_text(job, "text") == "All of it.\n"
    assert (
        as_text(job, "srt")
        == "1\n00:00:00,000 --> 00:00:02,000\none two\n\n2\n00:00:59,900 --> 01:01:01,500\na -> <b> & c\n"
    )
    assert as_text(job, "vtt") == (
        "WEBVTT\n"
        "\n"
        "00:00:00.000 --> 00:00:02.000\n"
        "one two\n"
        "\n"
        "00:00:59.900 --> 01:01:01.500\n"
        "a --&gt; &lt;b&gt; &amp; c\n"
    )
