"""Prepares a checked request for its model version: counts its tokens and makes the payload for the worker.

It is the same for every route and for the lines of a batch. The checks depend on the task (``prompts.tasks``). Blocks.
The version's default template comes in here, after the tenant's policy: it is the operator's text, not the caller's.
"""

from collections.abc import Collection
from typing import Any

from headrace.producer_api.caches.live_processes import LiveProcesses
from headrace.producer_api.caches.model_catalog import ModelCatalog
from headrace.prompts.grammar import Grammars
from headrace.prompts.tasks import generate
from headrace.prompts.tasks.registry import TASK_INPUTS
from headrace.prompts.tasks.task_inputs import Prepared, TaskInputs
from headrace.prompts.tokenizer import Tokenizer
from headrace.prompts.vision.chat_images import no_images
from headrace.store.calls.addresses import check_url
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import images_of
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.payloads.prompt_reference import DefaultTemplate, FilledTemplate, PromptReference, PromptUse
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.settings import Settings
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tasks.registry import TASKS, JobRequest

_CHARS_A_TOKEN = 4
"""A prompt with more characters for each token of the context window is tokenized before any other check."""


class _CatalogModel:
    """A model version with its parts from the catalog: an ``InputModel``."""

    def __init__(self, catalog: ModelCatalog, version: ModelVersion, window: int) -> None:
        self._catalog = catalog
        self._version = version
        self.context_window = version.context_window
        self.window = window

    @property
    def tokenizer(self) -> Tokenizer:
        return self._catalog.tokenizer(self._version)

    @property
    def grammars(self) -> Grammars:
        return self._catalog.grammars(self._version)

    @property
    def sampling(self) -> SamplingDefaults:
        return self._catalog.sampling(self._version)

    @property
    def settings(self) -> Any:
        return self._catalog.task_settings(self._version)

    def is_compiled(self, kind: str, text: str) -> bool:
        return self._catalog.is_compiled(self._version, kind, text)


class PromptTemplates:
    """The prompt templates of all tenants. This class is a server without the feature: it refuses what needs one.

    Its methods but ``with_default`` block, for up to half a second.
    """

    def read(self, tenant_id: str, reference: PromptReference) -> tuple[FilledTemplate, PromptUse]:
        """Return a template with the reference's values, and which version it is.

        Raises NotFound if the tenant has no such version, InvalidRequest if the values do not go with it.
        """
        raise _unknown_here("prompt")

    def fill(self, tenant_id: str, request: GenerateRequest) -> GenerateRequest:
        """Return the request with the input that its prompt template makes, if it names one. Raises as ``read``."""
        if request.has_template:
            raise _unknown_here("input.template")
        return request

    def snapshot(self, tenant_id: str, reference: PromptReference) -> DefaultTemplate:
        """Return a copy of a prompt with the reference's values, for a version. Raises as ``read``."""
        raise _unknown_here("prompt")

    def with_default(self, request: JobRequest, version: ModelVersion) -> JobRequest:
        """Return the request with the messages of the version's default template before its own, if it takes them.

        Raises InvalidRequest if there are too many messages then.
        """
        if version.template is not None and isinstance(request, GenerateRequest) and request.takes_default_template:
            raise _unknown_here("model")
        return request


def _unknown_here(param: str) -> InvalidRequest:
    return InvalidRequest("this server has no prompt templates: send the messages themselves", param=param)


class PromptPreparation:
    """Prepares requests. ``live_processes`` has the KV capacity of the workers."""

    def __init__(
        self,
        catalog: ModelCatalog,
        live_processes: LiveProcesses,
        settings: Settings,
        db: Database,
        templates: PromptTemplates,
    ) -> None:
        self._settings = settings
        self._db = db
        self._catalog = catalog
        self._live_processes = live_processes
        self._templates = templates

    def prepare(self, request: JobRequest, version: ModelVersion, policy: PinnedPolicy | None) -> Prepared:
        """Return the payload to store, and its cost. Raises InvalidRequest, ModelLoadError, Unavailable."""
        check_task(request, version)
        self.check_modalities(request, version)
        return _inputs_of(request).prepare(self._with_default(request, version), self._model(version), policy)

    def check_modalities(self, request: JobRequest, version: ModelVersion) -> None:
        """Raise InvalidRequest for messages with images and a version that takes none."""
        if not isinstance(request, GenerateRequest) or version.engine.takes_images or not images_of(request.input):
            return
        raise no_images(
            f"the model {version.model} takes no images in messages: use one of which GET /v1/models/NAME says that it"
            " accepts images, or /v1/images/classify for labels"
        )

    def prepare_again(
        self,
        request: JobRequest,
        version: ModelVersion,
        prepared: Prepared,
        other: ModelVersion,
        policy: PinnedPolicy | None,
    ) -> Prepared:
        """Return the payload for another version: what was ``prepared`` for ``version``, if the two prepare alike."""
        is_alike = (
            version.files == other.files
            and version.runner == other.runner
            and version.sampling == other.sampling
            and version.template == other.template
            and version.engine.accepts == other.engine.accepts
            and self._model(version).window == self._model(other).window
        )
        return prepared if is_alike else self.prepare(request, other, policy)

    def is_quick(self, request: JobRequest, version: ModelVersion) -> bool:
        """Return True if preparing the request takes no long time. Raises InvalidRequest."""
        check_task(request, version)
        return _inputs_of(request).is_quick(request, self._model(version))

    def with_files(self, tenant_id: str, request: JobRequest) -> JobRequest:
        """Return the request with what its file holds. Raises NotFound, InvalidRequest, Unavailable."""
        complete = _inputs_of(request).complete
        if complete is None:
            return request
        found: JobRequest = complete(request, tenant_id, self._settings, self._db)
        return found

    def cut_to_length(self, request: JobRequest, version: ModelVersion) -> JobRequest:
        """Return the request, shortened if it is long and asks for that; raise InvalidRequest if it is too long.

        Called before the policy, which is slow on a long text. A text that is short for the window is not tokenized.
        """
        check_task(request, version)
        model = self._model(version)
        if len(request.model_dump_json(include={"input"})) <= _CHARS_A_TOKEN * model.window:
            return request
        cut: JobRequest = _inputs_of(request).cut_to_length(request, model)
        return cut

    def count_tokens(self, request: GenerateRequest, version: ModelVersion) -> int:
        """Return the number of prompt tokens. Raises as ``prepare`` does."""
        self.check_modalities(request, version)
        return generate.count_tokens(self._with_default(request, version), self._model(version))

    def render(self, request: GenerateRequest, version: ModelVersion) -> tuple[str, int]:
        """Return the text that the model would read, and its number of tokens. Raises as ``prepare`` does."""
        check_task(request, version)
        return generate.render(request.input, self._model(version))

    def _with_default(self, request: JobRequest, version: ModelVersion) -> Any:
        return request if version.template is None else self._templates.with_default(request, version)

    def _model(self, version: ModelVersion) -> _CatalogModel:
        """Return the version as a preparation uses it.

        Its window is the model's context window, or the largest KV pool of the workers that serve it, if that is less.
        """
        serving = self._live_processes.serving(queue_name(version.model, version.version))
        capacity = None if serving is None else serving.capacity
        window = version.context_window if capacity is None else min(version.context_window, capacity)
        return _CatalogModel(self._catalog, version, window)


def _inputs_of(request: JobRequest) -> TaskInputs[Any]:
    return request.own_inputs() or TASK_INPUTS[request.task]


def check_called_urls(request: JobRequest, settings: Settings, unknown: Collection[str] = ()) -> None:
    """Raise InvalidRequest for the URL of an image that may not be called.

    One with a text of ``unknown``, which stands for an output that is not there yet, is checked at the call alone.
    """
    for param, url in request.called_urls():
        if not any(part in url for part in unknown):
            check_url(url, settings, param=param, code="invalid_image")


def check_task(request: JobRequest, version: ModelVersion) -> None:
    """Raise InvalidRequest for a version that does not serve the request's task."""
    if version.task not in (request.task, *TASKS[request.task].served_by):
        raise InvalidRequest(f"the model {version.model} {version.spec.purpose}", param="model")
