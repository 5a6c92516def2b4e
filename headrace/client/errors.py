"""The errors of the client, as one tree. The class shows the cause; message and code are the server's.

ClientError
├── RequestRefused        4xx: repeating the request unchanged fails again
│   ├── InvalidApiKey     401, 403: the key is unknown, or may not do this
│   └── ResourceMissing   404, 410: there is no such job, or its contents were deleted
├── TooManyRequests       429: over a limit
├── ApiUnavailable        5xx, or an answer that is not Headrace's
├── ConnectionLost        no answer
├── JobUnsuccessful       the job ended, but did not succeed
├── WaitExpired           the job has not ended within the time that the caller waits
├── InvalidBaseUrl        the base URL is not an http or https address
└── InvalidSignature      a webhook that must not be trusted
"""

from headrace.client.job_data import JobInfo


class ClientError(Exception):
    """A failure with a sentence for people.

    ``code`` and ``param`` (the field of the request) are the server's, if it gave them. ``request_id`` finds the
    request in the server's log. ``status``: the HTTP status, if there was an answer. ``is_transient``: True if the
    same request can succeed later. ``retry_after_s``: when, if the server says so.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        status: int | None = None,
        is_transient: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.request_id = request_id
        self.status = status
        self.is_transient = is_transient
        self.retry_after_s = retry_after_s


class RequestRefused(ClientError):
    """The server refuses the request; the caller must change it."""


class InvalidApiKey(RequestRefused):
    """The API key is unknown, revoked or expired, or lacks the scope."""


class ResourceMissing(RequestRefused):
    """There is no such thing for this key, or its contents were deleted."""


class TooManyRequests(ClientError):
    """Over a limit, also after the repeats."""


class ApiUnavailable(ClientError):
    """The server cannot do it now, also after the repeats; or its answer is not one of Headrace's."""


class ConnectionLost(ClientError):
    """There was no answer, also after the repeats."""


class JobUnsuccessful(ClientError):
    """The job failed, was cancelled or expired. ``job`` has its error and, if cancelled, the text so far."""

    def __init__(self, job: JobInfo) -> None:
        error = job["error"] or {}
        # A job that was cancelled while it was queued has no error.
        message, code = error.get("message", "it has no output"), error.get("code", job["status"])
        super().__init__(f"{job['id']} {job['status']}: {message}", code=code)
        self.job = job


class WaitExpired(ClientError, TimeoutError):
    """The job has not ended in time; it goes on. ``job`` is its last known state."""

    def __init__(self, job: JobInfo, timeout_s: float) -> None:
        super().__init__(f"{job['id']} is still {job['status']} after {timeout_s:g} s")
        self.job = job


class InvalidBaseUrl(ClientError):
    """The base URL is not an http or https address."""


class InvalidSignature(ClientError):
    """A webhook without a valid signature, or older or newer than allowed."""
