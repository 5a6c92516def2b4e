"""Builds the answers of a transcription in OpenAI's formats, from the job. No HTTP and no I/O."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from headrace.producer_api.streaming.answers import Entries, answer_of
from headrace.store.jobs.jobs import Job

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt"]

MEDIA_TYPES: Mapping[ResponseFormat, str] = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}
"""Of the formats that are not JSON."""


class TranscriptAnswer:
    """Builds the JSON of one job, whole and as the events of a stream."""

    def __init__(self, response_format: ResponseFormat = "json") -> None:
        self._is_verbose = response_format == "verbose_json"

    def full_answer(self, job: Job) -> dict[str, Any]:
        """Return the transcript of a succeeded job; raise JobUnanswered for any other."""
        output = answer_of(job)
        short = {"text": output["text"], "usage": {"type": "duration", "seconds": math.ceil(output["duration"])}}
        if not self._is_verbose:
            return short
        segments = [
            {"id": number, "seek": 0, "temperature": 0.0, **segment}
            for number, segment in enumerate(output["segments"])
        ]
        about = {name: output.get(name) for name in ("language", "duration")}
        return {"task": "transcribe", **about, **short, "segments": segments}

    def opening(self) -> Sequence[dict[str, Any]]:
        """Return nothing: the first event has text."""
        return []

    def pieces(self, text: str, _entries: Entries = ()) -> Sequence[dict[str, Any]]:
        """Return the event of the next text."""
        return [{"type": "transcript.text.delta", "delta": text}]

    def closing(self, job: Job) -> Sequence[dict[str, Any]]:
        """Return the last event of a succeeded job; raise JobUnanswered for any other."""
        output, usage = answer_of(job), job.usage or {}
        tokens = {name: int(usage.get(name, 0)) for name in ("input_tokens", "output_tokens")}
        details = {"audio_tokens": tokens["input_tokens"], "text_tokens": 0}
        counted = {
            "type": "tokens",
            **tokens,
            "total_tokens": sum(tokens.values()),
            "input_token_details": details,
        }
        return [{"type": "transcript.text.done", "text": output["text"], "usage": counted}]


def as_text(job: Job, response_format: ResponseFormat) -> str:
    """Return the transcript of a succeeded job in one of ``MEDIA_TYPES``; raise JobUnanswered for any other job."""
    output = answer_of(job)
    if response_format == "text":
        return f"{output['text']}\n"
    cues = [(one["start"], one["end"], " ".join(one["text"].split())) for one in output["segments"]]
    cues = [cue for cue in cues if cue[2]]
    if response_format == "vtt":
        lines = [f"{_span(start, end, '.')}\n{_escaped(text)}\n" for start, end, text in cues]
        return "\n".join(["WEBVTT\n", *lines])
    lines = [
        f"{number}\n{_span(start, end, ',')}\n{text.replace('-->', '->')}\n"
        for number, (start, end, text) in enumerate(cues, start=1)
    ]
    return "\n".join(lines)


def _span(start_s: float, end_s: float, point: str) -> str:
    return f"{_time(start_s, point)} --> {_time(end_s, point)}"


def _time(at_s: float, point: str) -> str:
    seconds, milliseconds = divmod(round(at_s * 1000), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"


def _escaped(text: str) -> str:
    """Return a text without the signs that WebVTT reads."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
