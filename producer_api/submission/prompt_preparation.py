"""From a checked request and its model version to what is stored: the cost in tokens, and the payload for the worker.

The same for every face and for a batch's lines. What is checked depends on the task (``prompts.tasks``). Blocks.
"""

from typing import Any

from producer_api.caches.live_processes import LiveProcesses
from producer_api.caches.model_catalog import ModelCatalog
from prompts.grammar import Grammars
from prompts.tasks import generate
from prompts.tasks.registry import TASK_INPUTS
from prompts.tasks.task_inputs import Prepared
from prompts.tokenizer import Tokenizer
from store.errors import InvalidRequest
from store.payloads.job_payload import PinnedPolicy
from store.payloads.sampling_params import SamplingDefaults
from store.registry.models import ModelVersion, queue_name
from store.tasks.generate import GenerateRequest
from store.tasks.registry import JobRequest

_CHARS_A_TOKEN = 4
"""In a prompt with more characters for each token of the window the tokens are counted before anything else."""


class _CatalogModel:
    """A model version whose parts come from the catalog: an ``InputModel``."""

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


class PromptPreparation:
    """Prepares requests. ``presence`` knows what the workers can hold."""

    def __init__(self, catalog: ModelCatalog, live_processes: LiveProcesses) -> None:
        self._catalog = catalog
        self._live_processes = live_processes

    def prepare(self, request: JobRequest, version: ModelVersion, policy: PinnedPolicy | None) -> Prepared:
        """Return what to store. Raises InvalidRequest, ModelLoadError, Unavailable."""
        _check_task(request, version)
        return TASK_INPUTS[request.task].prepare(request, self._model(version), policy)

    def is_quick(self, request: JobRequest, version: ModelVersion) -> bool:
        """Return True if preparing the request takes no long time. Raises InvalidRequest."""
        _check_task(request, version)
        return TASK_INPUTS[request.task].is_quick(request, self._model(version))

    def cut_to_length(self, request: JobRequest, version: ModelVersion) -> JobRequest:
        """Return the request, shortened if it is long and asks for that; raise InvalidRequest if it is too long.

        Cheap, for what is done with every character of a request: one that is short for the window is not counted.
        """
        _check_task(request, version)
        model = self._model(version)
        if len(request.model_dump_json(include={"input"})) <= _CHARS_A_TOKEN * model.window:
            return request
        cut: JobRequest = TASK_INPUTS[request.task].cut_to_length(request, model)
        return cut

    def count_tokens(self, request: GenerateRequest, version: ModelVersion) -> int:
        """Return how many tokens the model would be given. Raises as ``prepare`` does."""
        return generate.count_tokens(request, self._model(version))

    def _model(self, version: ModelVersion) -> _CatalogModel:
        """Return the version as a preparation uses it.

        Its window is the model's context window, or the largest KV pool of the workers that serve it, if that is less.
        """
        serving = self._live_processes.serving(queue_name(version.model, version.version))
        capacity = None if serving is None else serving.capacity
        window = version.context_window if capacity is None else min(version.context_window, capacity)
        return _CatalogModel(self._catalog, version, window)


def _check_task(request: JobRequest, version: ModelVersion) -> None:
    if request.task != version.task:
        raise InvalidRequest(f"the model {version.model} {version.spec.purpose}", param="model")
