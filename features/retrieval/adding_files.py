"""Adds files to a vector store: an attachment and a job of class ``batch`` for each, all of a request or none."""

import asyncio
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from headrace.features.encoders.embed.inputs import Embedder, check_texts
from headrace.features.encoders.embed.task import EMBED
from headrace.features.retrieval import store_files, vector_stores
from headrace.features.retrieval.ingest_order import DEFAULT_CHUNK, IngestOrder, IngestSource, passage_window
from headrace.features.retrieval.store_bodies import ChunkingStrategy, FileOfBatch
from headrace.features.retrieval.store_files import NewStoreFile, StoreFile
from headrace.features.retrieval.vector_stores import StoreModel, VectorStore
from headrace.producer_api.http.requests import OriginHeaders
from headrace.producer_api.jobs.cancel import cancel
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.submission.draft_job import Origin, Receipt
from headrace.store.errors import Conflict, InvalidRequest, NotFound
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.tenants.api_keys import Principal


def model_for(runtime: Runtime, principal: Principal, asked: str | None) -> StoreModel:
    """Return the model of a new store: the one asked for, that of the settings, or the only one. Blocks.

    Raises InvalidRequest if none of these is there, or if it does not embed texts; Forbidden, NotFound, Unavailable.
    """
    name = asked or runtime.settings.retrieval_model or _only_model(runtime, principal)
    version = runtime.submissions.version_of(principal, name)
    if version.task != EMBED.name:
        raise InvalidRequest(f"the model {version.model} {version.spec.purpose}", param="model")
    embedder = _embedder(runtime, version)
    check_texts(embedder)
    return StoreModel(version.model, version.version, embedder.width)


def _only_model(runtime: Runtime, principal: Principal) -> str:
    names = [one.name for one in models.list_models(runtime.db) if one.task == EMBED.name]
    if principal.models is not None:
        names = [name for name in names if name in principal.models]
    if len(names) == 1:
        return names[0]
    which = f"several models embed texts ({', '.join(names[:10])})" if names else "no model here embeds texts"
    message = f"{which}: name one in `model`, or let the operator set HEADRACE_RETRIEVAL_MODEL"
    raise InvalidRequest(message, param="model")


def store_version(runtime: Runtime, principal: Principal, store: VectorStore) -> ModelVersion:
    """Return the model version of a store. Raises Forbidden, Conflict if it is not there any more. Blocks."""
    name = queue_name(store.model, store.model_version)
    try:
        return runtime.submissions.version_of(principal, name)
    except NotFound:
        message = f"{name}, which makes the vectors of this store, is retired: add its files to a new store"
        raise Conflict(message) from None


def new_files(runtime: Runtime, version: ModelVersion, entries: Sequence[FileOfBatch]) -> list[NewStoreFile]:
    """Return the files with their numbers. Raises InvalidRequest for passages longer than the window. Blocks."""
    window = passage_window(runtime.catalog.tokenizer(version), _embedder(runtime, version))
    return [
        NewStoreFile(one.file_id, one.attributes or {}, *_numbers(one.chunking_strategy, window)) for one in entries
    ]


def _numbers(given: ChunkingStrategy | None, window: int) -> tuple[int, int]:
    """Return the tokens of a passage, and those that it shares with the one before."""
    if given is None or given.static is None:
        size = min(DEFAULT_CHUNK, window)
        return size, size // 4
    size = given.static.max_chunk_size_tokens
    if size > window:
        raise InvalidRequest(
            f"`max_chunk_size_tokens` is {size}, and a passage of this store's model has {window} tokens at most",
            param="chunking_strategy.static.max_chunk_size_tokens",
        )
    return size, given.static.chunk_overlap_tokens


def _embedder(runtime: Runtime, version: ModelVersion) -> Embedder:
    found = runtime.catalog.task_settings(version)
    if not isinstance(found, Embedder):
        raise InvalidRequest(f"the model {version.model} makes no vectors of texts", param="model")
    return found


async def add_files(
    runtime: Runtime,
    principal: Principal,
    store: VectorStore,
    entries: Sequence[FileOfBatch],
    headers: OriginHeaders,
    *,
    as_batch: bool = False,
) -> tuple[list[StoreFile], str | None]:
    """Add files and store their jobs; return the files, and the id of their batch if ``as_batch``.

    If a job is refused, no file of the request stays. Raises what a submission raises, and NotFound.
    """
    tenant_id = principal.tenant_id

    def attach() -> tuple[ModelVersion, list[StoreFile], str | None]:
        version = store_version(runtime, principal, store)
        new = new_files(runtime, version, entries)
        return version, *store_files.attach(runtime.db, tenant_id, store.id, new, as_batch=as_batch)

    version, attached, batch_id = await run_in_threadpool(attach)
    receipts = await asyncio.gather(
        *(_submit(runtime, principal, version, one, headers) for one in attached), return_exceptions=True
    )
    jobs = {
        one.ticket: receipt.job_id
        for one, receipt in zip(attached, receipts, strict=True)
        if isinstance(receipt, Receipt)
    }
    refused = next((receipt for receipt in receipts if isinstance(receipt, BaseException)), None)
    if refused is not None:
        await run_in_threadpool(_take_back, runtime, principal, attached, list(jobs.values()))
        raise refused
    await run_in_threadpool(store_files.note_jobs, runtime.db, tenant_id, jobs)
    await run_in_threadpool(vector_stores.touch, runtime.db, tenant_id, store.id)
    return attached, batch_id


async def _submit(
    runtime: Runtime, principal: Principal, version: ModelVersion, file: StoreFile, headers: OriginHeaders
) -> Receipt:
    source = IngestSource(
        vector_store_id=file.store_id,
        file_id=file.file_id,
        filename=file.filename,
        ticket=file.ticket,
        num_bytes=file.file_bytes,
        chunk_tokens=file.chunk_tokens,
        overlap_tokens=file.overlap_tokens,
    )
    name = queue_name(version.model, version.version)
    order = IngestOrder(model=name, service_class=ServiceClass.BATCH).with_source(source)
    origin = Origin(headers.route, None, "", False, 0, headers.project, None, headers.trace)
    return await runtime.submissions.submit(principal, order, origin)


def _take_back(runtime: Runtime, principal: Principal, attached: Sequence[StoreFile], job_ids: Sequence[str]) -> None:
    """Take the files of a refused request out again, and cancel the jobs that were accepted."""
    tenant_id = principal.tenant_id
    for one in attached:
        try:
            store_files.detach(runtime.db, tenant_id, one.store_id, one.file_id, actor=principal.key_id)
        except NotFound:
            continue
    cancel_jobs(runtime, tenant_id, job_ids)


def cancel_jobs(runtime: Runtime, tenant_id: str, job_ids: Sequence[str]) -> None:
    """Cancel jobs that have not ended. Blocks."""
    for job_id in job_ids:
        try:
            cancel(runtime, tenant_id, job_id)
        except (Conflict, NotFound):
            continue
