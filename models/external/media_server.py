"""Servers of pictures, sound or videos with OpenAI's API: a request, and its whole answer up to a length.

A server that is away or full fails the attempt, which is not charged. Its ids and its words are not shown.
"""

from typing import Any, Final

import httpx2

from headrace.models.engine.requests import EngineError
from headrace.models.external.upstream import UpstreamBusy, UpstreamLost, UpstreamRefused
from headrace.store.settings import Settings

_MISSING: Final = 404
_BUSY: Final = 429
_FAILED: Final = 500


class MediaServer:
    """A server. Many threads call it. ``url``: without ``/v1``. ``what``: of what it is a server, for errors."""

    def __init__(self, url: str, what: str, settings: Settings, timeout_s: float) -> None:
        headers = {"authorization": f"Bearer {settings.engine_api_key}"} if settings.engine_api_key else {}
        self._client = httpx2.Client(base_url=f"{url}/v1", headers=headers, timeout=timeout_s)
        self._name = f"the server of {what}"

    def ask(self, method: str, path: str, most_bytes: int, **body: Any) -> bytes | None:
        """Return the answer; None for 404. Raises UpstreamLost, UpstreamRefused; EngineError: too long."""
        found = bytearray()
        try:
            with self._client.stream(method, path, **body) as answer:
                if answer.status_code == _MISSING:
                    return None
                if answer.status_code == _BUSY or answer.status_code >= _FAILED:
                    raise UpstreamBusy(f"{self._name} answered {answer.status_code}")
                if not answer.is_success:
                    raise UpstreamRefused(f"{self._name} refused the request with {answer.status_code}")
                for block in answer.iter_bytes():
                    found += block
                    if len(found) > most_bytes:
                        raise EngineError(f"the answer of {self._name} is over {most_bytes} bytes")
        except httpx2.HTTPError as error:
            raise UpstreamLost(f"{self._name} gave no answer: {type(error).__name__}") from error
        return bytes(found)

    def order(self, path: str, most_bytes: int, **body: Any) -> bytes:
        """Return the answer to a POST, as ``ask``. Raises UpstreamRefused for 404 too."""
        found = self.ask("POST", path, most_bytes, **body)
        if found is None:
            raise UpstreamRefused(f"{self._name} refused the request with {_MISSING}")
        return found

    def close(self) -> None:
        """End the requests that run."""
        self._client.close()
