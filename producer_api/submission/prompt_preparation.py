"""From a checked request and the version that it asks for to what is stored: the prompt's length, whether it fits, and
the payload with everything in it that the worker needs. The same for every face and for a batch's lines. Blocks.
"""

from dataclasses import dataclass

from producer_api.caches.live_processes import Presence
from producer_api.caches.model_catalog import ModelCatalog
from prompts.embedding import check_dimensions, embed_inputs
from prompts.prompt import build_prompt, fit, shorten
from prompts.tool_grammar import grammar_for, with_tools
from store.errors import InvalidRequest
from store.payloads.job_payload import PinnedPolicy
from store.registry.models import ModelVersion, queue_name
from store.tasks.embed import EmbedPayload, EmbedRequest
from store.tasks.generate import GenerateInput, GeneratePayload, GenerateRequest, Truncation
from store.tasks.registry import JobRequest

_CHARS_A_TOKEN = 4
"""In a prompt with more characters for each token of the window the tokens are counted before anything else."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is stored of a request, and its tokens: of the prompt, and the most that may be generated."""

    payload: GeneratePayload | EmbedPayload
    num_tokens: int
    max_tokens: int = 0


class Preparing:
    """Prepares requests. ``presence`` knows what the workers can hold."""

    def __init__(self, catalog: ModelCatalog, presence: Presence) -> None:
        self._catalog = catalog
        self._presence = presence

    def prepare(self, request: JobRequest, version: ModelVersion, policy: PinnedPolicy | None) -> Prepared:
        """Return what to store. Raises InvalidRequest, ModelLoadError, Unavailable."""
        _check_task(request, version)
        if isinstance(request, EmbedRequest):
            return self._vectors(request, version)
        assert isinstance(request, GenerateRequest)  # noqa: S101
        return self._text(request, version, policy)

    def is_quick(self, request: JobRequest, version: ModelVersion) -> bool:
        """True if no grammar has to be compiled to prepare the request."""
        if isinstance(request, EmbedRequest):
            return True
        assert isinstance(request, GenerateRequest)  # noqa: S101
        grammar = request.sampling.grammar
        if request.input.callable_tools:
            grammar = grammar_for(request.input, self._catalog.tokenizer(version), grammar)
        return grammar is None or self._catalog.is_compiled(version, grammar.kind, grammar.text)

    def cut_to_length(self, request: JobRequest, version: ModelVersion) -> JobRequest:
        """Return the request, shortened if it is long and asks for that; raise InvalidRequest if it is too long.

        Cheap, for what is done with every character of a request: one that is short for the window is not counted.
        """
        if len(request.model_dump_json(include={"input"})) <= _CHARS_A_TOKEN * self._window(version):
            return request
        if isinstance(request, EmbedRequest):
            embed_inputs(self._catalog.tokenizer(version), self._catalog.embedder(version), request.input)
            return request
        assert isinstance(request, GenerateRequest)  # noqa: S101
        source = self._source(request, version)
        num_tokens = len(build_prompt(self._catalog.tokenizer(version), source))
        self._fit(version, num_tokens, request.sampling.max_tokens)
        return request.model_copy(update={"input": source})

    def count_tokens(self, request: GenerateRequest, version: ModelVersion) -> int:
        """Return how many tokens the model would be given. Raises as ``prepare`` does."""
        return len(build_prompt(self._catalog.tokenizer(version), self._source(request, version)))

    def _text(self, request: GenerateRequest, version: ModelVersion, policy: PinnedPolicy | None) -> Prepared:
        source, tokenizer = self._source(request, version), self._catalog.tokenizer(version)
        num_tokens = len(build_prompt(tokenizer, source))
        max_tokens = self._fit(version, num_tokens, request.sampling.max_tokens)
        if request.sampling.grammar is not None:
            self._catalog.grammars(version).check(request.sampling.grammar.kind, request.sampling.grammar.text)
        sampling = request.sampling.with_defaults(self._catalog.sampling(version))
        sampling = sampling.model_copy(update={"max_tokens": max_tokens})
        payload = GeneratePayload(input=source, sampling=sampling, policy=policy)
        if source.callable_tools:
            payload = with_tools(payload, tokenizer, self._catalog.grammars(version))
        return Prepared(payload, num_tokens, max_tokens)

    def _vectors(self, request: EmbedRequest, version: ModelVersion) -> Prepared:
        embedder = self._catalog.embedder(version)
        check_dimensions(embedder, request.dimensions)
        inputs = embed_inputs(self._catalog.tokenizer(version), embedder, request.input)
        payload = EmbedPayload(input=request.input, dimensions=request.dimensions)
        return Prepared(payload, sum(map(len, inputs)))

    def _source(self, request: GenerateRequest, version: ModelVersion) -> GenerateInput:
        """Return the input that the model is given, shortened if the request allows that and it is too long."""
        if request.truncation is Truncation.DISABLED:
            return request.input
        tokenizer, max_tokens = self._catalog.tokenizer(version), request.sampling.max_tokens
        return shorten(tokenizer, request.input, self._window(version), max_tokens)

    def _fit(self, version: ModelVersion, num_tokens: int, max_tokens: int | None) -> int:
        window = self._window(version)
        try:
            return fit(window, num_tokens, max_tokens)
        except InvalidRequest as error:
            if window < version.context_window:
                error.message += f" (the model's own is {version.context_window}, but its workers hold no more)"
            raise

    def _window(self, version: ModelVersion) -> int:
        """Return the tokens that prompt and answer may have together: what the model can see, or the largest KV pool
        of the workers that serve it, if that is less."""
        serving = self._presence.serving(queue_name(version.model, version.version))
        if serving is None or serving.capacity is None:
            return version.context_window
        return min(version.context_window, serving.capacity)


def _check_task(request: JobRequest, version: ModelVersion) -> None:
    if request.task == version.task:
        return
    what = {
        "generate": "generates text: use /v1/chat/completions, or the task generate",
        "embed": "makes vectors and no text: use /v1/embeddings, or the task embed",
    }
    raise InvalidRequest(f"the model {version.model} {what[version.task]}", param="model")
