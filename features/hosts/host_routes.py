"""The route of model hosts: what has a place on each, and the last swaps."""

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.hosts.host_views import HostList, host_object
from headrace.producer_api.access.auth import QueuesAdmin
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.hosts.host_reports import read_hosts

router = APIRouter(prefix="/v1/hosts", tags=["queues"], route_class=StrictJsonRoute, responses=DOCUMENTED)


@router.get("", response_model=HostList, summary="List model hosts")
async def list_hosts(runtime: RuntimeOf, principal: QueuesAdmin) -> Response:
    """Return every live model host, by name."""
    hosts = await run_in_threadpool(read_hosts, runtime.db)
    return JsonResponse(HostList(data=[host_object(host) for host in hosts]))
