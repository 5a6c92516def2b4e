"""The form of a transcription."""

from headrace.features.transcribe.transcription_form import fields_of


def test_a_form_is_read_as_json() -> None:
    form = {"model": "m", "language": "", "metadata[run]": "7", "metadata[a b]": "x", "job[priority]": "2"}
    form |= {
        "job[on_disconnect]": "continue",
        "job[max_attempts]": "1" * 13,
        "timestamp_granularities[]": "segment,word",
    }
    form |= {"metadata[]": "x", "other[x]": "1", f"metadata[{'k' * 65}]": "v"}
    assert fields_of(form) == {
        "model": "m",
        "metadata": ["x"],
        "job": {"priority": 2, "on_disconnect": "continue", "max_attempts": "1111111111111"},
        "timestamp_granularities": ["segment", "word"],
        "other[x]": "1",
        "metadata[kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk]": "v",
    }
