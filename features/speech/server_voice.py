"""A voice behind a server with OpenAI's ``/v1/audio/speech``: each piece is a request of its own, for PCM.

A server that is away or full fails the attempt, which is not charged. Its ids and its words are not shown.
"""

from typing import Final

import httpx2

from headrace.features.speech.saying import Saying
from headrace.features.speech.voice_folder import ServerConfig
from headrace.models.engine.requests import EngineError
from headrace.models.external.upstream import UpstreamBusy, UpstreamLost
from headrace.store.settings import Settings

_TIMEOUT_S: Final = 300.0
_LONGEST_PIECE_S: Final = 600
_BUSY: Final = 429
_FAILED: Final = 500
_OK: Final = 200


class ServerVoice:
    """A ``Voice``. Many threads call it."""

    def __init__(self, server: ServerConfig, settings: Settings) -> None:
        headers = {"authorization": f"Bearer {settings.engine_api_key}"} if settings.engine_api_key else {}
        self._client = httpx2.Client(base_url=server.url, headers=headers, timeout=_TIMEOUT_S)
        self._server = server

    def say(self, saying: Saying) -> bytes:
        """Return the samples of a piece. Raises UpstreamLost, UpstreamBusy; EngineError for a refusal."""
        asked = {"model": self._server.model, "input": saying.text, "voice": saying.voice, "speed": saying.speed}
        found = bytearray()
        try:
            with self._client.stream("POST", "/v1/audio/speech", json={**asked, "response_format": "pcm"}) as answer:
                if answer.status_code == _BUSY or answer.status_code >= _FAILED:
                    raise UpstreamBusy(f"the server of speech answered {answer.status_code}")
                if answer.status_code != _OK:
                    raise EngineError(f"the server of speech refused the request with {answer.status_code}")
                for block in answer.iter_bytes():
                    found += block
                    if len(found) > 2 * self._server.sample_rate * _LONGEST_PIECE_S:
                        raise EngineError(f"the server of speech sent more than {_LONGEST_PIECE_S} s for one piece")
        except httpx2.HTTPError as error:
            raise UpstreamLost(f"the server of speech gave no answer: {type(error).__name__}") from error
        if not found or len(found) % 2:
            raise EngineError("the server of speech sent no PCM of 16 bits")
        return bytes(found)
