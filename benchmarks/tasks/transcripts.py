"""Transcripts beside transformers' pipeline: ``python -m benchmarks.tasks.transcripts FOLDER``.

``FOLDER`` has a Whisper model for transformers. espeak-ng speaks 20 sentences into WAV files. ``ours`` is the runner of
the workers, with four clips in a pass; ``pipeline`` is transformers' own, one clip after the other, with one beam. Both
have the same torch and threads and take turns after a warm-up. Prints each transcript that differs, the real-time
factors (seconds of computing a second of audio) and, as its last line, JSON.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    pipeline,
)

from headrace.features.transcribe.audio_file import AudioBounds, inspect, read_mono
from headrace.features.transcribe.cutting import resampled
from headrace.features.transcribe.torch_transcriber import transcriber_for
from headrace.features.transcribe.transcription import ChunkOptions, ChunkTranscript
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import small_files
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.settings import Settings

RATE = 16_000
IN_A_PASS = 4
NUM_POSITIONS = 1500
"""Places of the encoder for a chunk of 30 s."""

SENTENCES = (
    "The mill stands by the river.",
    "Water turns the wheel all day.",
    "We make bread this morning.",
    "The train leaves at seven every evening.",
    "Please bring two cups of tea to the garden.",
    "The old bridge was built in nineteen hundred and four.",
    "She reads a book under the tree.",
    "Our neighbours have three cats and one dog.",
    "It rained in the night, and the road is wet.",
    "The doctor will see you on Monday.",
    "He wrote a long letter to his brother.",
    "Snow covers the mountains in winter.",
    "The market opens early on Saturdays.",
    "I would like to pay for the tickets.",
    "The children play football in the park.",
    "Turn left at the church, and then go straight on.",
    "The museum is closed until next week.",
    "They bought apples, pears and a bottle of milk.",
    "My sister works in a hospital near the station.",
    "Thank you for your help, and have a good day.",
)

Turn = Callable[[Sequence[np.ndarray]], list[str]]


def spoken(folder: Path) -> list[np.ndarray]:
    """Return the sentences as samples, float32 at 16 kHz."""
    clips = []
    for number, sentence in enumerate(SENTENCES):
        path = folder / f"{number:02}.wav"
        subprocess.run(["espeak-ng", "-v", "en", "-s", "150", "-w", str(path), sentence], check=True)
        with path.open("rb") as file:
            found = inspect(file, AudioBounds(60, 2, 8000, 48_000), "file")
            samples = np.concatenate([*read_mono(file, found.num_frames)])
        clips.append(resampled(samples, found.rate, RATE))
    return clips


def ours(folder: Path, threads: int) -> Turn:
    """Return what transcribes with the runner of the workers."""
    runner = transcriber_for(folder, Settings(device="cpu", torch_threads=threads))
    tokenizer = load_tokenizer(small_files(folder))

    def transcribe(clips: Sequence[np.ndarray]) -> list[str]:
        texts = []
        for at in range(0, len(clips), IN_A_PASS):
            chunks = ChunkOptions(tuple(clip.astype("<f4").tobytes() for clip in clips[at : at + IN_A_PASS]), "en")
            rows = [EncodeRow("clips", (0,) * NUM_POSITIONS, chunks, number) for number in range(len(chunks.chunks))]
            made = [ChunkTranscript.from_bytes(result) for result in runner.run(rows)]
            texts += ["".join(tokenizer.decode(segment.tokens) for segment in one.segments) for one in made]
        return texts

    return transcribe


def theirs(folder: Path) -> Turn:
    """Return what transcribes with the pipeline of transformers."""
    recognize = pipeline(
        "automatic-speech-recognition",
        model=WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32),
        tokenizer=WhisperTokenizer.from_pretrained(folder),
        feature_extractor=WhisperFeatureExtractor.from_pretrained(folder),
    )
    asked = {"language": "en", "task": "transcribe", "num_beams": 1}
    return lambda clips: [recognize(clip, return_timestamps=True, generate_kwargs=asked)["text"] for clip in clips]


def main() -> None:
    """Compare, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        clips = spoken(Path(name))
    turns = {"ours": ours(options.folder, options.threads), "pipeline": theirs(options.folder)}
    texts = {name: turn(clips) for name, turn in turns.items()}
    pairs = list(zip(texts["ours"], texts["pipeline"], strict=True))
    for one, other in pairs:
        print(repr(one) if one == other else f"{one!r} is not {other!r}")
    audio_s = sum(clip.size for clip in clips) / RATE
    factors: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(options.rounds):
        for name, turn in turns.items():
            began = time.perf_counter()
            turn(clips)
            factors[name].append((time.perf_counter() - began) / audio_s)
    medians = {name: round(statistics.median(found), 3) for name, found in factors.items()}
    equal = sum(one == other for one, other in pairs)
    print(f"equal: {equal} of {len(clips)}; {audio_s:.1f} s of audio; real-time factor, median: {medians}")
    print(json.dumps({"equal": equal, "clips": len(clips), "audio_s": round(audio_s, 1), "factors": factors}))


if __name__ == "__main__":
    main()
