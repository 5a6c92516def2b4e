"""A voice behind a server with OpenAI's ``/v1/audio/speech``: each piece is a request of its own, for PCM."""

from typing import Final

from headrace.features.speech.saying import Saying
from headrace.features.speech.voice_folder import ServerConfig
from headrace.models.engine.requests import EngineError
from headrace.models.external.media_server import MediaServer
from headrace.store.settings import Settings

_TIMEOUT_S: Final = 300.0
_LONGEST_PIECE_S: Final = 600


class ServerVoice:
    """A ``Voice``. Many threads call it."""

    def __init__(self, config: ServerConfig, settings: Settings) -> None:
        self._server = MediaServer(config.url, "speech", settings, _TIMEOUT_S)
        self._config = config

    def say(self, saying: Saying) -> bytes:
        """Return the samples of a piece. Raises what ``MediaServer.ask`` does; EngineError for no samples."""
        asked = {"model": self._config.model, "input": saying.text, "voice": saying.voice, "speed": saying.speed}
        most = 2 * self._config.sample_rate * _LONGEST_PIECE_S
        found = self._server.order("/audio/speech", most, json={**asked, "response_format": "pcm"})
        if not found or len(found) % 2:
            raise EngineError("the server of speech sent no PCM of 16 bits")
        return found
