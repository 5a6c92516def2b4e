"""Routes of queues: backlog, throughput, pause and resume. Without ``queues:admin`` only the tenant's own share."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.producer_api.access.auth import JobsReader, QueuesAdmin, may
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.jobs.queue_views import (
    QueueList,
    QueueObject,
    QueueScalingObject,
    queue_object,
    scaling_object,
)
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.hosts.host_reports import read_hosts
from headrace.store.registry.models import queue_name, resolve
from headrace.store.scheduling import backlog, queues
from headrace.store.scheduling.scale_decisions import require_decision
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1/queues", tags=["queues"], route_class=StrictJsonRoute, responses=DOCUMENTED)

QueueName = Annotated[str, Path(examples=["smollm2@1"])]


@router.get("", response_model=QueueList, summary="List queues")
async def list_queues(runtime: RuntimeOf, principal: JobsReader) -> Response:
    """Return every queue, by name."""
    return JsonResponse(QueueList(data=await run_in_threadpool(_read_queues, runtime, principal)))


@router.get("/{name}", response_model=QueueObject, summary="Retrieve a queue")
async def get_queue(runtime: RuntimeOf, principal: JobsReader, name: QueueName) -> Response:
    """Return one queue."""
    (found,) = await run_in_threadpool(_read_queues, runtime, principal, name)
    return JsonResponse(found)


@router.get("/{name}/scaling", response_model=QueueScalingObject, summary="Retrieve the number of workers")
async def get_queue_scaling(runtime: RuntimeOf, principal: QueuesAdmin, name: QueueName) -> Response:
    """Return how many workers the queue should have, for a scaler such as KEDA's. The name may be that of a model.

    404 if no dispatcher has decided lately: the scaler should leave the workers as they are.
    """
    return JsonResponse(await run_in_threadpool(_read_scaling, runtime, name))


@router.post("/{name}/pause", response_model=QueueObject, summary="Pause a queue")
async def pause_queue(runtime: RuntimeOf, principal: QueuesAdmin, name: QueueName) -> Response:
    """Start no job of the queue until it is resumed. Running jobs continue, and new jobs are accepted."""
    return await _change_queue(queues.pause, runtime, principal, name)


@router.post("/{name}/resume", response_model=QueueObject, summary="Resume a queue")
async def resume_queue(runtime: RuntimeOf, principal: QueuesAdmin, name: QueueName) -> Response:
    """Start the queue's jobs again."""
    return await _change_queue(queues.resume, runtime, principal, name)


async def _change_queue(change: Callable[..., None], runtime: Runtime, principal: Principal, name: str) -> Response:
    await run_in_threadpool(change, runtime.db, principal.tenant_id, name, actor=principal.key_id)
    (found,) = await run_in_threadpool(_read_queues, runtime, principal, name)
    return JsonResponse(found)


def _read_scaling(runtime: Runtime, name: str) -> QueueScalingObject:
    version = resolve(runtime.db, name)
    return scaling_object(require_decision(runtime.db, queue_name(version.model, version.version)))


def _read_queues(runtime: Runtime, principal: Principal, name: str | None = None) -> list[QueueObject]:
    sees_all = may(principal, "queues:admin")
    tenant_id = None if sees_all else principal.tenant_id
    found = queues.view_queues(runtime.db, backlog.read_backlog(runtime.db), tenant_id=tenant_id, name=name)
    hosts = read_hosts(runtime.db)
    return [queue_object(queue, share="all" if sees_all else "own", hosts=hosts) for queue in found]
