"""A voice without weights: a tone for each character, so that sound shows what was said."""

import math
import time
from array import array
from collections.abc import Callable

from headrace.features.speech.saying import Saying
from headrace.features.speech.voice_folder import FAKE

CHAR_S = 0.05
"""At speed 1."""


class FakeVoice:
    """A ``Voice``. A piece takes ``step_s``."""

    def __init__(self, *, step_s: float = 0.0, sleep: Callable[[float], object] = time.sleep) -> None:
        self.step_s = step_s
        self.sleep = sleep

    def say(self, saying: Saying) -> bytes:
        """Return the samples of a piece."""
        if self.step_s:
            self.sleep(self.step_s)
        samples = array("h")
        length = round(CHAR_S / saying.speed * FAKE.rate)
        for char in saying.text:
            pitch = (100 if saying.voice == "low" else 400) + ord(char) % 200
            samples.extend(round(8000 * math.sin(2 * math.pi * pitch * at / FAKE.rate)) for at in range(length))
        return samples.tobytes()
