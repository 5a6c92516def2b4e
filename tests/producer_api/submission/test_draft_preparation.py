"""Drafts of jobs before they are stored: what they spend, their version and prompt. No services."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.encoders.embed.task import EmbedRequest
from headrace.producer_api.submission import unserved
from headrace.producer_api.submission.prompt_preparation import (
    PromptPreparation,
    PromptTemplates,
    check_called_urls,
    check_task,
)
from headrace.store.errors import Conflict, InvalidRequest, NoWorker
from headrace.store.hosts.host_reports import HostOutlook
from headrace.store.payloads.prompt_reference import DefaultTemplate, PromptReference
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.version_states import VersionState
from headrace.store.settings import Settings
from headrace.store.tasks.generate import GenerateInput, GenerateRequest
from tests.producer_api.submission.making import VERSION, draft, refused, told
from tests.stand_ins import stand_in

# Versions: what they serve, whether a worker serves them, and their default templates.


def test_a_version_without_a_worker_is_told_with_what_hosts_do() -> None:
    loading = HostOutlook.model_validate({"queue": "tiny@1", "in_s": 0.2})
    never = HostOutlook.model_validate({"queue": "tiny@1", "text": "it is too large"})
    unread = replace(VERSION, state=VersionState.REGISTERED)
    assert "tiny@1" in unserved.warning(VERSION, None)
    assert "1 s" in unserved.warning(VERSION, loading)
    assert "it is too large" in unserved.warning(VERSION, never)
    assert "verified tiny@1" in unserved.warning(unread, None)
    rejected = unserved.rejected(replace(VERSION, state=VersionState.REJECTED, state_reason="its files are damaged"))
    assert (type(rejected), rejected.code, rejected.param) == (Conflict, "model_rejected", "model")
    assert "its files are damaged" in rejected.message
    assert unserved.refusal("tiny@1", loading) is None, "a host starts a worker"
    for outlook in (None, never):
        refused = unserved.refusal("tiny@1", outlook)
        assert refused is not None
        assert (type(refused), refused.code, refused.param) == (NoWorker, "no_worker", "model")
        assert ("it is too large" in refused.message) is (outlook is never)


NAMED = {"template": {"id": "p"}}
TEMPLATE = DefaultTemplate.model_validate(
    {"id": "p", "name": "n", "version": 1, "digest": "d", "messages": [{"role": "system", "content": "Be brief."}]}
)


def test_a_server_without_templates_refuses_what_needs_one() -> None:
    templates, brief = PromptTemplates(), replace(VERSION, template=TEMPLATE)
    raw, chat = draft().request, {"messages": [{"role": "user", "content": "hi"}]}
    assert isinstance(raw, GenerateRequest)
    plain, named = (raw.model_copy(update={"input": GenerateInput.model_validate(one)}) for one in (chat, NAMED))
    assert (templates.fill("acme", raw), templates.with_default(raw, brief)) == (raw, raw)
    assert templates.with_default(plain, VERSION) is plain
    for call, param in (
        (lambda: templates.fill("acme", named), "input.template"),
        (lambda: templates.with_default(plain, brief), "model"),
        (lambda: templates.snapshot("acme", PromptReference(id="p")), "prompt"),
    ):
        assert refused(call)[::2] == (InvalidRequest, param)


class Preparing(PromptPreparation):
    """A preparation that notes its jobs. ``capacity``: of the workers, by queue."""

    def __init__(self, **capacity: int) -> None:
        not_asked: Any = None
        serving = stand_in(serving=lambda queue: stand_in(capacity=capacity.get(queue[-1:])))
        super().__init__(not_asked, serving, not_asked, not_asked, not_asked)
        self.again: list[ModelVersion] = []

    def prepare(self, request: Any, version: ModelVersion, policy: Any) -> Any:
        self.again.append(version)
        return "again"


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"a": "1"}},
        {"runner": "torch"},
        {"sampling": SamplingDefaults(temperature=0.5)},
        {"template": TEMPLATE},
        {"engine": SimpleNamespace(accepts=("image",))},
        {"context_window": 1024},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_request_is_prepared_once_for_versions_that_are_alike(changes: dict[str, Any]) -> None:
    prepared: Any = "prepared"
    alike, other = replace(VERSION, version=2), replace(VERSION, version=2, **changes)
    preparing = Preparing()
    assert preparing.prepare_again(draft().request, VERSION, prepared, alike, None) == "prepared"
    assert preparing.prepare_again(draft().request, VERSION, prepared, other, None) == "again"
    assert preparing.again == [other]


def test_a_request_is_prepared_again_for_smaller_workers() -> None:
    prepared: Any = "prepared"
    alike = replace(VERSION, version=2)
    for capacity, expected in (("64", "again"), ("512", "prepared"), ("1024", "prepared")):
        preparing = Preparing(**{"2": int(capacity)})
        assert preparing.prepare_again(draft().request, VERSION, prepared, alike, None) == expected, capacity


def test_a_version_serves_its_own_task() -> None:
    embed = EmbedRequest.model_validate({"task": "embed", "model": "tiny", "input": {"texts": ["a"]}})
    check_task(draft().request, VERSION)
    with pytest.raises(InvalidRequest) as caught:
        check_task(embed, VERSION)
    assert told(caught.value)[1:] == (f"the model tiny {VERSION.spec.purpose}", "invalid_value", "model")


def test_urls_are_checked_unless_a_part_is_not_known_yet() -> None:
    settings = Settings(database_url="postgresql://x/y", redis_url="redis://x")
    request: Any = SimpleNamespace(called_urls=lambda: [("input.images[0].url", "https://127.0.0.1/MARK.png")])
    check_called_urls(request, settings, {"MARK"})
    for unknown in ((), {"OTHER"}):
        with pytest.raises(InvalidRequest) as caught:
            check_called_urls(request, settings, unknown)
        assert (caught.value.code, caught.value.param) == ("invalid_image", "input.images[0].url")
