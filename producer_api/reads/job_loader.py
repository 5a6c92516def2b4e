"""Loads jobs for coroutines: concurrent reads of all tenants share one query, as ``store.db.group_commit`` does it.

Polls, long polls and streams all come here, so a thousand waiting clients cost a few queries a second.

The owner of a job reads its answer with the values of the placeholders. Stored and streamed answers contain
placeholders only, and a piece of a stream never splits one. The values are in the job's payload, which is encrypted. So
each piece of a stream, and each text of an answer, is restored by itself.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

from headrace.store.db.database import Database
from headrace.store.db.group_commit import GroupCommit, OnBatch, unobserved
from headrace.store.errors import HeadraceError, NotFound
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import Job, TenantAndId

MOST = 500
"""Callers that share one query. If more wait, tenants take turns, so that a tenant with many reads delays no other."""

PACE_S = 0.02
"""Queries start at least this far apart: the longest time that a caller waits to share a query."""

_ID = re.compile(r"[!-~]{1,128}")
_PLACEHOLDER = re.compile(r"<[A-Z0-9_]+>")


class JobLoader:
    """Reads jobs as their owner sees them."""

    def __init__(self, db: Database, on_batch: OnBatch = unobserved) -> None:
        self._db = db
        self._reads: GroupCommit[TenantAndId, Job] = GroupCommit(
            self._read, max_size=MOST, pace_s=PACE_S, enough=math.inf, fair_key=itemgetter(0), on_batch=on_batch
        )

    async def get(self, tenant_id: str, job_id: str) -> Job:
        """Return the job as it is now; raise NotFound if the tenant has no such job, Gone if it had one."""
        if _ID.fullmatch(job_id) is None:
            # Postgres refuses some texts, and the query of all callers in the batch would fail.
            raise NotFound(f"no job {job_id[:64]}")
        return await self._reads.join_async((tenant_id, job_id))

    def _read(self, pairs: Sequence[TenantAndId]) -> list[Job | Exception]:
        found = {pair: _restored(job) for pair, job in jobs.get_each(self._db, list(dict.fromkeys(pairs))).items()}
        return [found[pair] for pair in pairs]


def _restored(found: Job | HeadraceError) -> Job | Exception:
    if isinstance(found, HeadraceError):
        return found
    try:
        return restored(found)
    except Exception as error:  # noqa: BLE001 - it belongs to this job alone, not to the others in its batch
        return error


class PlaceholderRestorer:
    """Restores the values of one job's answer."""

    def __init__(self, values: Mapping[str, str], *, in_json: bool) -> None:
        self._values = values
        self._in_json = in_json

    def text(self, text: str) -> str:
        """Return a text, or a piece of a stream, with its values."""
        return _PLACEHOLDER.sub(self._value, text) if self._values else text

    def _value(self, found: re.Match[str]) -> str:
        value = self._values.get(found[0])
        if value is None:
            return found[0]
        return json.dumps(value, ensure_ascii=False)[1:-1] if self._in_json else value

    def output(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """Return an answer with its values: in its text and content, and in the arguments of its tool calls."""
        texts: dict[str, Any] = {name: self.text(output[name]) for name in ("text", "content") if output.get(name)}
        if calls := output.get("tool_calls"):
            texts["tool_calls"] = [self._call(call) for call in calls]
        if choices := output.get("choices"):
            texts["choices"] = [*map(self.output, choices)]
        return {**output, **texts}

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": self.text(function["arguments"])}}


def vault_of(payload: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the placeholders of a job with their values, None if no value is restored."""
    vault: Mapping[str, Any] | None = (payload.get("policy") or {}).get("vault")
    return vault


def restorer_of(job: Job) -> PlaceholderRestorer | None:
    """Return the restorer of a job's answer, None if it needs none."""
    vault = vault_of(job.payload)
    if vault is None:
        return None
    grammar = job.payload.get("sampling", {}).get("grammar") or {}
    is_json = job.payload.get("tool_style") is not None or grammar.get("kind") == "json_schema"
    return PlaceholderRestorer(vault["values"], in_json=is_json)


def restored(job: Job) -> Job:
    """Return the job with the values of its placeholders, as its owner reads it."""
    if job.output is None or (restorer := restorer_of(job)) is None:
        return job
    return replace(job, output=restorer.output(job.output))
