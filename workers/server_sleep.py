"""Asks a vLLM server on this machine to sleep and to wake: its weights go to main memory, and its KV cache is freed.

The server must have been started with ``--enable-sleep-mode`` and VLLM_SERVER_DEV_MODE=1. Each call blocks.
"""

import json
from http.client import HTTPConnection, HTTPException

from headrace.store.errors import Unavailable

_OK = 200
_MOVE_S = 120.0
"""Weights of some hundred gigabytes are copied to or from main memory in this time."""

_ASK_S = 5.0


def fall_asleep(host: str, port: int, api_key: str) -> None:
    """Let the server sleep, and return when it does. Raises Unavailable if it does not: it can only be ended."""
    _ask("POST", host, port, "/sleep?level=1", api_key, _MOVE_S)
    if not _is_asleep(host, port, api_key):
        raise Unavailable("the inference server does not sleep")


def wake(host: str, port: int, api_key: str) -> None:
    """Wake the server if it sleeps, and return when it is awake; one that does not listen yet starts awake.

    Raises Unavailable if it does not wake.
    """
    try:
        sleeps = _is_asleep(host, port, api_key)
    except ConnectionRefusedError:
        return
    except OSError as error:
        raise Unavailable(f"the inference server does not say whether it sleeps: {error}") from error
    if sleeps:
        _ask("POST", host, port, "/wake_up", api_key, _MOVE_S)
        if _is_asleep(host, port, api_key):
            raise Unavailable("the inference server does not wake")


def _is_asleep(host: str, port: int, api_key: str) -> bool:
    return bool(json.loads(_ask("GET", host, port, "/is_sleeping", api_key, _ASK_S))["is_sleeping"])


def _ask(method: str, host: str, port: int, path: str, api_key: str, timeout_s: float) -> bytes:
    """Return the body of the answer. Raises Unavailable, and OSError if nothing listens."""
    connection = HTTPConnection(host, port, timeout=timeout_s)
    try:
        headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        answer = connection.getresponse()
        body = answer.read()
    except HTTPException as error:
        raise Unavailable(f"the inference server broke off the answer to {path}") from error
    finally:
        connection.close()
    if answer.status != _OK:
        raise Unavailable(f"the inference server answered {answer.status} to {path}")
    return body
