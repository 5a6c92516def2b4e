"""Replaces placeholders in a model's answer by their values, when the owner of the job reads the answer.

Stored and streamed answers contain placeholders only, and a piece of a stream never splits one. The values are in the
job's payload, which is encrypted. So each piece of a stream, and each text of an answer, is restored by itself.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from policy.placeholders import PlaceholderMap
from store.jobs.jobs import Job


class PlaceholderRestorer:
    """Restores the values of one job's answer."""

    def __init__(self, vault: PlaceholderMap, *, in_json: bool) -> None:
        self._vault = vault
        self._in_json = in_json

    def text(self, text: str) -> str:
        """Return a text, or a piece of a stream, with its values."""
        return self._vault.put_back(text, in_json=self._in_json)

    def output(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """Return an answer with its values: in its text and content, and in the arguments of its tool calls."""
        texts: dict[str, Any] = {name: self.text(output[name]) for name in ("text", "content") if output.get(name)}
        if calls := output.get("tool_calls"):
            texts["tool_calls"] = [self._call(call) for call in calls]
        return {**output, **texts}

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": self.text(function["arguments"])}}


def vault_of(payload: Mapping[str, Any]) -> PlaceholderMap | None:
    """Return the values of a job's placeholders, None if no value is restored."""
    stored = (payload.get("policy") or {}).get("vault")
    return None if stored is None else PlaceholderMap.model_validate(stored)


def restorer_of(job: Job) -> PlaceholderRestorer | None:
    """Return the restorer of a job's answer, None if it needs none."""
    vault = vault_of(job.payload)
    if vault is None:
        return None
    grammar = job.payload.get("sampling", {}).get("grammar") or {}
    is_json = job.payload.get("tool_style") is not None or grammar.get("kind") == "json_schema"
    return PlaceholderRestorer(vault, in_json=is_json)


def restored(job: Job) -> Job:
    """Return the job with the values of its placeholders, as its owner reads it."""
    if job.output is None or (restorer := restorer_of(job)) is None:
        return job
    return replace(job, output=restorer.output(job.output))
