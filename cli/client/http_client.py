"""The client of the verbs: ``headrace.client`` with the routes of operators."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import orjson

from headrace.client import ApiUnavailable, Client, ConnectionLost, InvalidApiKey, InvalidBaseUrl, answers
from headrace.client.job_calls import Call
from headrace.store.errors import SettingsError

Json = dict[str, Any]

# A person waits: after about a second without a connection it is better to say so.
_MAX_RETRIES = 3

# An event comes each second. After this time without one the connection is lost.
_SILENCE_S = 10.0


class OperatorClient(Client):
    """A client of one API with one key. Methods raise ClientError. Raises SettingsError for a malformed address.

    ``on_warning``: as in ``Client``.
    """

    def __init__(self, base_url: str, api_key: str, on_warning: Callable[[str], None] = lambda _sentence: None) -> None:
        self.base_url, self.api_key = base_url, api_key
        try:
            super().__init__(base_url, api_key, max_retries=_MAX_RETRIES, on_warning=on_warning)
        except InvalidBaseUrl as error:
            raise SettingsError(f"HEADRACE_API_URL: {error.message}") from error

    def dead_letters(self, **filters: str | int | None) -> list[Json]:
        """Return the newest matching dead letters."""
        return self._list("GET", "/v1/dead_letters", params=filters)

    def replay_dead_letters(self, **filters: str | int | None) -> list[Json]:
        """Replay matching dead letters that were not replayed yet. Returns the new job of each."""
        body = {name: value for name, value in filters.items() if value is not None}
        return self._list("POST", "/v1/dead_letters/replay", json=body)

    def replay_dead_letter(self, job_id: str) -> Json:
        """Replay a dead letter. Returns its new job, the same one for every call."""
        return self.request("POST", f"/v1/dead_letters/{quote(job_id, safe='')}/replay")

    def queues(self) -> list[Json]:
        """Return the statistics of the queues."""
        return self._list("GET", "/v1/queues")

    def pause_queue(self, name: str) -> Json:
        """Pause a queue and return it."""
        return self.request("POST", f"/v1/queues/{quote(name, safe='')}/pause")

    def resume_queue(self, name: str) -> Json:
        """Resume a queue and return it."""
        return self.request("POST", f"/v1/queues/{quote(name, safe='')}/resume")

    def models(self) -> list[Json]:
        """Return the models, without entries for their aliases and versions."""
        return [model for model in self._list("GET", "/v1/models") if "@" not in str(model["id"])]

    def whole_timeline(self, job_id: str) -> Json:
        """Return a job's events, and its attempts."""
        return self.request("GET", f"/v1/jobs/{quote(job_id, safe='')}/timeline")

    def job_deliveries(self, job_id: str) -> list[Json]:
        """Return the webhook deliveries of a job with their tries; none if the key may not see them."""
        try:
            return [self.webhook_delivery(one["id"]) for one in self.webhook_deliveries(job_id=job_id, limit=5)]
        except InvalidApiKey:
            return []

    def live(self) -> Json:
        """Return the live figures once."""
        return self.request("GET", "/v1/live")

    def live_events(self) -> Iterator[tuple[str, Json]]:
        """Yield each event of the live figures with its name. Raises ClientError when the connection ends, however."""
        timeout = httpx2.Timeout(_SILENCE_S, connect=5)
        headers = {"Accept": "text/event-stream"}
        try:
            with self._http.stream("GET", "/v1/live", headers=headers, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise answers.error_of(response)
                for sent in httpx2.EventSource(response, max_event_size=None):
                    yield sent.event, orjson.loads(sent.data)
        except httpx2.TransportError as error:
            raise answers.lost(error, self.base_url) from error
        raise ConnectionLost(f"{self.base_url} has ended the connection", is_transient=True)

    def model_versions(self, model: str | None = None) -> list[Json]:
        """Return the versions of a model, or of all models, retired ones too."""
        return self._list("GET", "/v1/model_versions", params={"model": model})

    def register_version(self, model: str, body: Json) -> Json:
        """Register a version of a model, and return it."""
        return self.request("POST", f"/v1/models/{quote(model)}/versions", json=body)

    def quality_bound(self, model: str) -> Json:
        """Return what the versions of a model must keep."""
        return self.request("GET", _bound(model))

    def set_quality_bound(self, model: str, limits: Json) -> Json:
        """Set what the versions of a model must keep, and return it."""
        return self.request("PUT", _bound(model), json=limits)

    def remove_quality_bound(self, model: str) -> None:
        """Let a model have no bound."""
        self.request("DELETE", _bound(model))

    def set_alias(
        self, model: str, alias: str, version: int, *, force: bool = False, expected: int | None = None
    ) -> Json:
        """Let an alias name this version, and return it. ``force``: also if a rollout of it was rolled back.

        ``expected``: the version that the alias must name before, 0 for a new alias; None: any.
        """
        headers = None
        if expected is not None:
            headers = {"If-Match": f'"{expected}"'} if expected else {"If-None-Match": "*"}
        # Repeated, a conditional change would find its own effect and be refused.
        body, is_repeatable = {"version": version, "force": force}, expected is None
        call = Call("PUT", _alias(model, alias), json=body, headers=headers, is_repeatable=is_repeatable)
        return self._run(self._calls.send(call))

    def remove_alias(self, model: str, alias: str) -> None:
        """Remove an alias."""
        self.request("DELETE", _alias(model, alias))

    def retire_version(self, version: str) -> Json:
        """Take a version (``name@3``) out of use for new jobs, and return it."""
        return self.request("POST", f"/v1/model_versions/{quote(version)}/retire")

    def revive_version(self, version: str) -> Json:
        """Take a retired version (``name@3``) back into use, and return it."""
        return self.request("POST", f"/v1/model_versions/{quote(version)}/revive")

    def prompts(self) -> list[Json]:
        """Return the newest version of each of the newest prompts."""
        return self._list("GET", "/v1/prompts", params={"limit": 100})

    def prompt(self, reference: str) -> Json:
        """Return a version of a prompt: ``name``, ``name@2`` or ``name@alias``."""
        return self.request("GET", _prompt(reference))

    def create_prompt(self, body: Json) -> Json:
        """Create a prompt and return it."""
        return self.request("POST", "/v1/prompts", json=body)

    def add_prompt_version(self, name: str, template: Json) -> Json:
        """Add a version to a prompt and return it."""
        return self.request("POST", f"{_prompt(name)}/versions", json=template)

    def render_prompt(self, reference: str, body: Json) -> Json:
        """Return what a prompt makes of the values in the body."""
        return self.request("POST", f"{_prompt(reference)}/render", json=body)

    def set_prompt_alias(self, name: str, alias: str, version: int) -> Json:
        """Let an alias name this version of a prompt, and return the version."""
        return self.request("PUT", f"{_prompt(name)}/aliases/{quote(alias, safe='')}", json={"version": version})

    def remove_prompt_alias(self, name: str, alias: str) -> None:
        """Remove an alias of a prompt."""
        self.request("DELETE", f"{_prompt(name)}/aliases/{quote(alias, safe='')}")

    def delete_prompt(self, name: str) -> Json:
        """Delete a prompt with its versions."""
        return self.request("DELETE", _prompt(name))

    def pipelines(self) -> list[Json]:
        """Return the newest version of each of the newest pipelines."""
        return self._list("GET", "/v1/pipelines", params={"limit": 100})

    def pipeline(self, reference: str) -> Json:
        """Return a version of a pipeline: ``name``, ``name@2`` or ``name@alias``."""
        return self.request("GET", _pipeline(reference))

    def create_pipeline(self, body: Json) -> Json:
        """Create a pipeline and return it."""
        return self.request("POST", "/v1/pipelines", json=body)

    def add_pipeline_version(self, name: str, pipeline: Json) -> Json:
        """Add a version to a pipeline and return it."""
        return self.request("POST", f"{_pipeline(name)}/versions", json=pipeline)

    def set_pipeline_alias(self, name: str, alias: str, body: Json) -> Json:
        """Let an alias name a version of a pipeline, with or without a canary, and return the version."""
        return self.request("PUT", f"{_pipeline(name)}/aliases/{quote(alias, safe='')}", json=body)

    def remove_pipeline_alias(self, name: str, alias: str) -> None:
        """Remove an alias of a pipeline."""
        self.request("DELETE", f"{_pipeline(name)}/aliases/{quote(alias, safe='')}")

    def delete_pipeline(self, name: str) -> Json:
        """Delete a pipeline with its versions."""
        return self.request("DELETE", _pipeline(name))

    def rollouts(self, model: str | None = None, *, pipeline: str | None = None) -> list[Json]:
        """Return the newest rollouts, of one model or of all, or of one pipeline."""
        return self._list("GET", _rollouts(pipeline), params={"model": model})

    def rollout(self, rollout_id: str, *, pipeline: str | None = None) -> Json:
        """Return a rollout with the judge's checks. ``pipeline``: whose it is, if it is of no model."""
        return self.request("GET", _rollout(rollout_id, pipeline))

    def rollout_plot(self, rollout_id: str) -> str:
        """Return the drawing of a rollout's evidence, as SVG."""
        return self._text(f"{_rollout(rollout_id)}/plot")

    def start_rollout(self, body: Json, *, pipeline: str | None = None) -> Json:
        """Start a rollout, of a model or of a pipeline, and return it."""
        return self.request("POST", _rollouts(pipeline), json=body)

    def change_rollout(self, rollout_id: str, verb: str, reason: str | None, *, pipeline: str | None = None) -> Json:
        """Pause, resume, promote or abort a rollout, and return it."""
        return self.request("POST", f"{_rollout(rollout_id, pipeline)}/{verb}", params={"reason": reason})

    def create_webhook_endpoint(self, url: str, events: list[str]) -> Json:
        """Register a URL for these events. The answer has the signing secret."""
        return self.request("POST", "/v1/webhook_endpoints", json={"url": url, "events": events})

    def delete_webhook_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint and its deliveries."""
        self.request("DELETE", _endpoint(endpoint_id))

    def webhook_endpoints(self) -> list[Json]:
        """Return the endpoints, without their secrets."""
        return self._list("GET", "/v1/webhook_endpoints")

    def test_webhook_endpoint(self, endpoint_id: str) -> Json:
        """Send a test event to an endpoint, and return its delivery."""
        return self.request("POST", f"{_endpoint(endpoint_id)}/test")

    def enable_webhook_endpoint(self, endpoint_id: str) -> Json:
        """Enable an endpoint and return it."""
        return self.request("POST", f"{_endpoint(endpoint_id)}/enable")

    def recover_webhook_endpoint(self, endpoint_id: str, since: int) -> int:
        """Send the events that an endpoint missed since a time (Unix seconds). Returns their number."""
        num_queued = 0
        while True:
            answer = self.request("POST", f"{_endpoint(endpoint_id)}/recover", json={"since": since})
            num_queued += int(answer["queued"])
            if not answer["has_more"]:
                return num_queued

    def tools(self) -> list[Json]:
        """Return the tools that the server calls, without the values of their headers."""
        return self._list("GET", "/v1/tools")

    def create_tool(self, body: Json) -> Json:
        """Create a tool and return it."""
        return self.request("POST", "/v1/tools", json=body)

    def replace_tool(self, tool_id: str, definition: Json) -> Json:
        """Replace a tool's definition and return it."""
        return self.request("PUT", f"/v1/tools/{quote(tool_id, safe='')}", json=definition)

    def delete_tool(self, tool_id: str) -> None:
        """Delete a tool."""
        self.request("DELETE", f"/v1/tools/{quote(tool_id, safe='')}")

    def approvals(self, **filters: str | int | None) -> list[Json]:
        """Return the newest calls that wait, or have waited, for an approval. ``filters``: of ``GET /v1/approvals``."""
        return self._list("GET", "/v1/approvals", params=filters)

    def answer_approval(self, approval: Json, *, approve: bool, reason: str | None) -> Json:
        """Approve or refuse a call, and return the approval."""
        path = f"/v1/jobs/{quote(approval['job_id'], safe='')}/approvals/{quote(approval['id'], safe='')}"
        return self.request("POST", path, json={"approve": approve, "reason": reason})

    def webhook_deliveries(self, **filters: str | int | None) -> list[Json]:
        """Return the newest deliveries that match."""
        return self._list("GET", "/v1/webhook_deliveries", params=filters)

    def webhook_delivery(self, delivery_id: str) -> Json:
        """Return a delivery with its attempts."""
        return self.request("GET", _delivery(delivery_id))

    def redeliver(self, delivery_id: str) -> Json:
        """Send a delivery again and return it."""
        return self.request("POST", f"{_delivery(delivery_id)}/redeliver")

    def _text(self, path: str) -> str:
        try:
            answer = self._http.get(path)
        except httpx2.TransportError as error:
            raise answers.lost(error, self.base_url) from error
        if answer.is_error:
            raise answers.error_of(answer)
        return answer.text

    def _list(self, method: str, path: str, **options: Any) -> list[Json]:
        found = self.request(method, path, **options).get("data")
        if not isinstance(found, list):
            raise ApiUnavailable("the server at HEADRACE_API_URL answered, but not as Headrace does")
        return found


def _prompt(reference: str) -> str:
    return f"/v1/prompts/{quote(reference, safe='')}"


def _pipeline(reference: str) -> str:
    return f"/v1/pipelines/{quote(reference, safe='')}"


def _rollouts(pipeline: str | None) -> str:
    return "/v1/rollouts" if pipeline is None else f"{_pipeline(pipeline)}/rollouts"


def _rollout(rollout_id: str, pipeline: str | None = None) -> str:
    return f"{_rollouts(pipeline)}/{quote(rollout_id, safe='')}"


def _endpoint(endpoint_id: str) -> str:
    return f"/v1/webhook_endpoints/{quote(endpoint_id, safe='')}"


def _delivery(delivery_id: str) -> str:
    return f"/v1/webhook_deliveries/{quote(delivery_id, safe='')}"


def _bound(model: str) -> str:
    return f"/v1/models/{quote(model)}/quality_bound"


def _alias(model: str, alias: str) -> str:
    return f"/v1/models/{quote(model)}/aliases/{quote(alias, safe='')}"
