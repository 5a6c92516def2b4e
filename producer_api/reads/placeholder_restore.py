"""Putting values back where a model's answer names their placeholders, for whoever may read the answer.

Stored and streamed answers have placeholders only, never cut in two by a piece; the values lie in the job's payload,
which is sealed. So each piece, and each text of a whole answer, is turned back by itself, as it is read.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from policy.placeholders import Vault
from store.jobs.jobs import Job


class PlaceholderRestorer:
    """Turns the placeholders of one job's answer back."""

    def __init__(self, vault: Vault, *, in_json: bool) -> None:
        self._vault = vault
        self._in_json = in_json

    def text(self, text: str) -> str:
        """Return a text, or a piece of one, with its values."""
        return self._vault.put_back(text, in_json=self._in_json)

    def output(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """Return a whole answer with its values: its text and content, and the arguments of its calls."""
        told: dict[str, Any] = {name: self.text(output[name]) for name in ("text", "content") if output.get(name)}
        if calls := output.get("tool_calls"):
            told["tool_calls"] = [self._call(call) for call in calls]
        return {**output, **told}

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": self.text(function["arguments"])}}


def vault_of(payload: Mapping[str, Any]) -> Vault | None:
    """Return the values of a job's placeholders, None if it has none to put back."""
    stored = (payload.get("policy") or {}).get("vault")
    return None if stored is None else Vault.model_validate(stored)


def restorer_of(job: Job) -> PlaceholderRestorer | None:
    """Return what turns the job's placeholders back, None if it has none."""
    vault = vault_of(job.payload)
    if vault is None:
        return None
    grammar = job.payload.get("sampling", {}).get("grammar") or {}
    is_json = job.payload.get("tool_style") is not None or grammar.get("kind") == "json_schema"
    return PlaceholderRestorer(vault, in_json=is_json)


def restored(job: Job) -> Job:
    """Return the job as its owner reads it."""
    if job.output is None or (restorer := restorer_of(job)) is None:
        return job
    return replace(job, output=restorer.output(job.output))
