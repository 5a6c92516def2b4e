"""Audio of a request: what is stored of it, what it costs, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.transcribe.task import AudioSource, TranscribeOutput, TranscribePayload, TranscribeRequest
from headrace.features.transcribe.transcriber_folder import FAKE as TRANSCRIBER
from headrace.features.transcribe.transcriber_folder import TranscriberSettings
from headrace.prompts.tasks.registry import TASK_INPUTS
from headrace.store.payloads.job_payload import PinnedPolicy
from tests.prompts.tasks.test_folders import read_settings
from tests.prompts.tasks.test_prepared import Model, refused

ASKED = TranscribeRequest.model_validate({"task": "transcribe", "model": "m", "input": {"file_id": "f"}})


@pytest.mark.parametrize(
    ("settings", "language", "said"),
    [(TRANSCRIBER, "fr", "'fr': it knows de, en"), (replace(TRANSCRIBER, languages={}), "de", "'de': it knows en")],
)
def test_a_language_that_the_model_does_not_know_is_refused(settings: Any, language: str, said: str) -> None:
    message, code, param = refused("transcribe", Model(settings), input={"file_id": "f"}, language=language)
    assert (code, param) == ("invalid_value", "language")
    assert said in message


def test_audio_that_came_with_a_request_is_known_by_its_content() -> None:
    audio = AudioSource(content="c", num_frames=1, rate=2, seconds=0.5)
    uploaded, sent = ASKED.with_audio(audio), ASKED.with_audio(audio, "d1")
    assert (ASKED.audio, uploaded.audio, sent.audio) == (None, audio, audio)
    assert (uploaded.digest_fields(), sent.digest_fields()) == ({}, {"input": {"sha256": "d1"}})


def test_outputs_are_read_with_what_older_workers_left_out() -> None:
    said = TranscribeOutput(text="a", duration=1.0, segments=())
    assert (said.language, said.policy) == (None, None)


def test_the_settings_of_a_version_are_those_of_its_stored_files() -> None:
    files = {
        "preprocessor_config.json": {"chunk_length": 30, "sampling_rate": 16_000},
        "generation_config.json": {"no_timestamps_token_id": 1},
    }
    found = read_settings("transcribe", "x", files, max_source_positions=1500)
    assert found == TranscriberSettings(30, 16_000, 1500, {})
    assert read_settings("transcribe", "fake") == TRANSCRIBER


def test_audio_counts_its_positions_and_at_least_one() -> None:
    assert [TRANSCRIBER.tokens_of(seconds) for seconds in (0.001, 1, 29.99, 61)] == [1, 50, 1500, 3050]


def test_a_transcript_is_stored_with_its_audio_and_counts_its_positions() -> None:
    audio = AudioSource(content="c", num_frames=32_000, rate=16_000, seconds=2)
    inputs, model, policy = TASK_INPUTS["transcribe"], Model(TRANSCRIBER), PinnedPolicy(model="p", version=1)
    body = {"task": "transcribe", "model": "m", "input": {"file_id": "f"}}
    for language in (None, "de"):
        request = TranscribeRequest.model_validate(body | {"language": language}).with_audio(audio)
        found = inputs.prepare(request, model, policy)
        expected = TranscribePayload(file_id="f", audio=audio, language=language, policy=policy)
        assert (found.payload, found.num_tokens) == (expected, 100)
        assert inputs.cut_to_length(request, model) is request
