"""Paths of protocols that are not served, and what a client of each should use instead."""

import re

_OPENAI = "use the client's OpenAI mode with the base URL http://<host>/v1"
_PROTOCOLS = (
    (re.compile(r"/api/v1(/.*)?"), "the routes of OpenAI's API are under /v1: use the base URL http://<host>/v1"),
    (re.compile(r"/api/.+"), f"Ollama's protocol is not served: {_OPENAI}"),
    (
        re.compile(r"/v2(/(health|models|repository)(/.*)?)?|/v1/models/.+:(predict|explain)"),
        "KServe's protocol is not served: send predictions to /v1/jobs or to the route of the task, and probes to "
        "/healthz and /readyz",
    ),
    (re.compile(r"/v2/(chat|embed|tokenize|detokenize)"), f"of Cohere's API only rerank is served: {_OPENAI}"),
)


def instead_of(path: str) -> str | None:
    """Return what to use instead of this path of another protocol; None for any other path."""
    return next((advice for pattern, advice in _PROTOCOLS if pattern.fullmatch(path)), None)
