"""The client for jobs, sync and async: submit, wait, stream, cancel, list, and verify webhooks.

``job_calls`` and ``job_stream`` decide what is sent, repeated and returned, without I/O; ``sync_client`` and
``async_client`` only send and sleep."""

from headrace.client.async_client import AsyncClient
from headrace.client.errors import (
    ApiUnavailable,
    ClientError,
    ConnectionLost,
    InvalidApiKey,
    InvalidBaseUrl,
    InvalidSignature,
    JobUnsuccessful,
    RequestRefused,
    ResourceMissing,
    TooManyRequests,
    WaitExpired,
)
from headrace.client.job_data import JobBody, JobInfo, JobPage, JobUsage, StreamEvent, WebhookEvent
from headrace.client.sync_client import Client
from headrace.client.webhooks import verify_webhook

__all__ = [
    "ApiUnavailable",
    "AsyncClient",
    "Client",
    "ClientError",
    "ConnectionLost",
    "InvalidApiKey",
    "InvalidBaseUrl",
    "InvalidSignature",
    "JobBody",
    "JobInfo",
    "JobPage",
    "JobUnsuccessful",
    "JobUsage",
    "RequestRefused",
    "ResourceMissing",
    "StreamEvent",
    "TooManyRequests",
    "WaitExpired",
    "WebhookEvent",
    "verify_webhook",
]
