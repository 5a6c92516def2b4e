"""The transcriber on torch: what is refused, and what is no part of a transcript."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.features.transcribe import torch_transcriber as transcriber
from headrace.features.transcribe.torch_transcriber import transcriber_for
from headrace.features.transcribe.transcription import ChunkOptions, ChunkTranscript, TokenSegment
from headrace.models.engine.requests import EncodeRow, NumericalError
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings
from tests.models.runners.making import CPU
from tests.models.runners.test_not_finite import SETTINGS, answered
from tests.models.tiny_whisper import RATE, WINDOW_S, build_whisper
from tests.refusals import Naming
from tests.stand_ins import stand_in


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_transcriber_with_numbers_that_are_not_finite_is_refused(
    number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.bias, number)
    asked: list[Any] = []
    monkeypatch.setattr(transcriber, "small_files", lambda folder: {})
    monkeypatch.setattr(transcriber, "read_transcriber", lambda files: None)
    monkeypatch.setattr(transcriber, "read_model", lambda *_, **given: asked.append(given) or (model, CPU))
    with pytest.raises(ModelLoadError) as refused:
        transcriber_for(Path("m"), Settings(device="cpu"), dtype="float16")
    assert str(refused.value) == Naming("m has ", "not finite")
    assert asked == [{"dtype": "float16", "unused": "proj_out."}]


def transcribing(generate: Any) -> transcriber.TorchTranscriber:
    """A transcriber on a model whose own code is ``generate``."""
    model = stand_in(config=stand_in(eos_token_id=50), dtype=torch.float32, generate=generate)
    settings: Any = stand_in(num_positions=100, languages={}, rate=16_000)
    return transcriber.TorchTranscriber(model, lambda *_, **__: stand_in(input_features=[[0.0]]), settings, CPU)


CHUNK = [EncodeRow("r", (0,), ChunkOptions((bytes(4),)))]


def test_a_transcriber_that_does_not_come_to_an_end_is_stopped() -> None:
    rounds: list[int] = []

    def generate(*_: object, monitor_progress: Any, **__: object) -> None:
        for number in range(200):
            monitor_progress(torch.zeros(1))
            rounds.append(number)

    with pytest.raises(RuntimeError, match="100 rounds"):
        transcribing(generate).run(CHUNK)
    assert len(rounds) == 100


def test_special_tokens_and_segments_without_text_are_no_part_of_a_transcript() -> None:
    segments = [
        {"tokens": torch.tensor([50, 7, 49, 60]), "start": torch.tensor(0.5), "end": torch.tensor(1.2347)},
        {"tokens": torch.tensor([60, 50]), "start": torch.tensor(2.0), "end": torch.tensor(3.0)},
    ]
    found = transcribing(lambda *_, **__: {"segments": [segments]})
    assert found.run(CHUNK) == [ChunkTranscript(0, (TokenSegment(500, 1235, (7, 49)),)).as_bytes]
    assert found.context_window == 100


def test_a_transcriber(tmp_path: Path) -> None:
    transcriber = transcriber_for(build_whisper(tmp_path / "ears"), SETTINGS)
    audio = np.zeros(RATE * WINDOW_S, "<f4").tobytes()
    asked = [EncodeRow("a", (0,), ChunkOptions((audio, audio), "en"), number) for number in range(2)]
    assert answered(transcriber, asked) == [True, True]
    transcriber.model.model.decoder.layer_norm.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="logits of a chunk"):
        transcriber.run(asked)
    with pytest.raises(NumericalError, match="output is not"):
        transcriber.run(asked[:1])
