"""The task ``generate`` for a version that an inference server runs: the server's engine instead of a runner.

The prompt, the policy and the outcome are those of ``workers.tasks.generate``. Torch is not imported.
"""

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import structlog

from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import EngineError
from headrace.models.external.connect import connect
from headrace.models.external.external_engine import ExternalConfig, ExternalEngine
from headrace.models.external.server_check import ServerCheck
from headrace.models.external.server_probes import why_no_images, why_not_continued
from headrace.models.external.upstream import Upstream, UpstreamLost
from headrace.prompts.chat_server import chat_fields
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.prompts.tokenizer import Tokenizer, tokenizer_for
from headrace.store.db.database import Database
from headrace.store.errors import ModelLoadError, SettingsError
from headrace.store.payloads.conversation import images_of
from headrace.store.ports import free_port
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.settings import Settings
from headrace.store.tasks.generate import GenerateInput
from headrace.workers.images.chat_pictures import ChatPictures
from headrace.workers.images.image_source import ImageSource
from headrace.workers.server_command import HOST, server_argv, server_environment
from headrace.workers.server_process import ServerProcess, server_log
from headrace.workers.server_sleep import wake
from headrace.workers.tasks.generate import Generating, generating
from headrace.workers.tasks.task_model import EngineSetup, TaskModel, WorkContext

log = structlog.get_logger(__name__)

EXTERNAL_SLOTS = 256
"""Jobs that a worker sends to a server at once where the settings say nothing: the server admits fewer if it must."""


@dataclass(frozen=True, slots=True)
class ServerStart:
    """How the command line wants a worker's server. ``kind``: the worker starts it, with these ``arguments``.

    ``url``: a model host has started it, as the worker would, and it may sleep.
    """

    kind: EngineKind | None = None
    arguments: tuple[str, ...] = ()
    url: str | None = None


NO_SERVER = ServerStart()


@dataclass(frozen=True, slots=True)
class ExternalGenerateModel(TaskModel):
    """A version that an inference server runs. ``server`` is the worker's own, None for the operator's."""

    version: ModelVersion
    tokenizer: Tokenizer
    upstream: Upstream
    check: ServerCheck
    server: ServerProcess | None
    pictures: ChatPictures

    @property
    def engine_description(self) -> str | None:
        """The server that answered last, as attempts record it."""
        return self.check.description

    @property
    def default_settings(self) -> Mapping[str, int]:
        """A server runs more requests at once than a CPU."""
        return {"max_slots": EXTERNAL_SLOTS}

    def new_engine(self, setup: EngineSetup) -> ExternalEngine:
        """Return an engine that sends requests to the server."""
        return ExternalEngine(
            self.upstream,
            lambda: Detokenizer(self.tokenizer),
            self.tokenizer.eos_token_ids,
            ExternalConfig(
                self.version.engine.request_model,
                self.version.context_window,
                max_slots=setup.num_slots,
                deltas_per_s=setup.settings.stream_deltas_per_s,
            ),
            on_deltas=setup.on_deltas,
            on_room=setup.on_room,
            on_failed=setup.on_failed,
            refuse=self.check.refuse,
        )

    def new_work(self, engine: AnyEngine, context: WorkContext) -> Generating:
        """Return the work for the jobs of this model."""
        return generating(
            self.version,
            self.tokenizer,
            engine,
            context,
            context_window=self.version.context_window,
            chat_fields=partial(self._chat_fields, context.db) if self._is_chat else None,
        )

    @property
    def _is_chat(self) -> bool:
        return self.version.engine.kind is EngineKind.OPENAI

    def _chat_fields(self, db: Database, tenant_id: str, source: GenerateInput) -> dict[str, Any]:
        """Return a tenant's input as fields of a chat completion. Raises InvalidRequest, Unavailable."""
        return chat_fields(source, self.pictures.data_urls(db, tenant_id, images_of(source)))

    def close(self) -> None:
        """End the worker's own server."""
        if self.server is not None:
            self.server.stop()


def load_external_model(
    version: ModelVersion,
    settings: Settings,
    read_file: ReadFile,
    start: ServerStart,
    on_accepted: Callable[[str], None] = lambda said: None,
) -> ExternalGenerateModel:
    """Connect to the version's server; start it if it is this worker's own.

    ``on_accepted`` gets each new description of a server that runs what was registered, on any thread.
    Raises SettingsError or ModelLoadError if the server cannot be started or runs something else than was registered. A
    server of the operator may be away: the worker takes jobs when it is there.
    """
    spec = _checked(version, start)
    tokenizer = tokenizer_for(version, read_file)
    server, url, api_key = None, spec.url or "", settings.engine_api_key
    if start.url is not None:
        url = start.url
        wake(*_place(url), api_key)
    elif start.kind is not None or spec.url is None:
        api_key = secrets.token_urlsafe(24)
        server, url = _own_server(version, settings, start, api_key)
    try:
        _compare(spec, url, api_key)
        check = ServerCheck(
            spec, is_own=server is not None or start.url is not None, note=partial(_described, on_accepted)
        )
        pictures = ChatPictures(ImageSource(settings))
        upstream = connect(spec, url=url, api_key=api_key)
        return ExternalGenerateModel(version, tokenizer, upstream, check, server, pictures)
    except BaseException:
        if server is not None:
            server.stop()
        raise


def _place(url: str) -> tuple[str, int]:
    """Return the host and the port of an address."""
    parts = urlsplit(url)
    return parts.hostname or HOST, parts.port or 0


def _described(on_accepted: Callable[[str], None], said: str) -> None:
    log.info("server_described", server=said)
    on_accepted(said)


def _checked(version: ModelVersion, start: ServerStart) -> EngineSpec:
    name = queue_name(version.model, version.version)
    kind = version.engine.kind
    if not version.engine.is_external or start.kind not in (None, kind):
        raise SettingsError(
            f"{name} is registered for the engine {kind.value}: `headrace register {version.model} FOLDER --engine "
            f"{start.kind or 'vllm'}` makes a version for another"
        )
    if start.arguments and start.kind is None and version.engine.url is not None:
        raise SettingsError(
            f"{name} has the address of a server, so this worker starts none: leave out {' '.join(start.arguments)}, "
            f"or start a server with --engine {kind.value}"
        )
    return version.engine


def _own_server(
    version: ModelVersion, settings: Settings, start: ServerStart, api_key: str
) -> tuple[ServerProcess, str]:
    """Start the worker's own server; return it and its address."""
    port = free_port(HOST, 0)
    argv = server_argv(version, settings, port=port, arguments=start.arguments)
    server = ServerProcess(
        version.engine.kind.value,
        argv,
        server_environment(version.engine, api_key),
        server_log(settings.home.absolute() / "logs", version.model, os.getpid()),
        HOST,
        port,
    )
    server.start()
    return server, f"http://{HOST}:{port}"


def _compare(spec: EngineSpec, url: str, api_key: str) -> None:
    """Raise ModelLoadError if the server runs something else than was registered. One that is away is only logged."""

    async def ask() -> str | None:
        upstream = connect(spec, url=url, api_key=api_key)
        try:
            info = await upstream.describe()
            reason = ServerCheck(spec, is_own=False).refuse(info)
            if reason is None and spec.takes_images:
                reason = await why_no_images(upstream, spec.request_model)
            if reason is None and spec.continues:
                reason = await why_not_continued(upstream, spec.request_model)
            return reason
        finally:
            await upstream.close()

    try:
        reason = asyncio.run(ask())
    except UpstreamLost as error:
        log.warning("server_away", url=url, reason=str(error))
        return
    except EngineError as error:
        raise ModelLoadError(f"the inference server at {url} cannot be used: {error}") from error
    if reason is not None:
        raise ModelLoadError(f"{reason} (at {url})")
