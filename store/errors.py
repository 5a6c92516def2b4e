"""The errors that callers receive, as one tree. The class shows the cause, the message the remedy.

    HeadraceError
    ├── RequestError                 the caller's request; repeating it unchanged fails again
    │   ├── InvalidRequest           malformed, out of range, not supported
    │   ├── Unauthenticated          no key, or not one of ours
    │   ├── Forbidden                the key is good but may not do this
    │   ├── NotFound                 no such thing for this tenant
    │   ├── Gone                     there was such a thing, but it is kept no longer
    │   ├── Conflict                 the thing is in a state that does not allow this
    │   ├── IdempotencyKeyReused     the same key came with another body
    │   └── TooLarge                 more bytes than are accepted
    ├── RateLimited                  come back after ``retry_after_s``
    │   └── QuotaExceeded            the month's money is spent; coming back soon does not help
    ├── Unavailable                  our side: a dependency is away; nothing was stored
    │   └── StatementTimeout         Postgres gave up on a statement
    │   └── NoWorker                 no worker serves the model version, and the settings require one
    └── CannotOpen                   our side: a sealed value's key is missing, or the value was changed

HTTP status codes are known in ``producer_api/server/errors.py`` only.
"""

import math
from typing import ClassVar


class HeadraceError(Exception):
    """A failure with a stable ``code``, a sentence for people, and the request field it is about, if one."""

    default_code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param


class RequestError(HeadraceError):
    """The caller must change the request."""

    default_code = "invalid_value"


class InvalidRequest(RequestError):
    """A value is malformed, out of range or not supported."""


class Unauthenticated(RequestError):
    """No API key, or one that was never issued, was revoked or has expired."""

    default_code = "invalid_api_key"


class Forbidden(RequestError):
    """The key lacks the scope for this route."""

    default_code = "insufficient_scope"


class NotFound(RequestError):
    """The tenant has nothing by that name."""

    default_code = "not_found"


class Gone(RequestError):
    """The tenant had it, but it was purged."""

    default_code = "result_expired"


class Conflict(RequestError):
    """The resource's state does not allow the operation."""

    default_code = "conflict"


class PreconditionFailed(RequestError):
    """The resource is not in the state that the caller expects it in."""

    default_code = "precondition_failed"


class IdempotencyKeyReused(RequestError):
    """The Idempotency-Key was used before with a different body."""

    default_code = "idempotency_key_reused"


class TooLarge(RequestError):
    """The body is over the size limit."""

    default_code = "request_too_large"


class RateLimited(HeadraceError):
    """Over a limit for now. ``retry_after_s``: seconds until the next try."""

    default_code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, retry_after_s: float, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after_s = retry_after_s


class QuotaExceeded(RateLimited):
    """Over the spending limit; the message has the time of its reset."""

    default_code = "quota_exceeded"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=math.inf)


class Unavailable(HeadraceError):
    """A service that Headrace needs is away. Nothing of the request was stored."""

    default_code = "no_capacity"

    def __init__(
        self, message: str, *, retry_after_s: float = 1.0, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after_s = retry_after_s


class NoWorker(Unavailable):
    """No worker serves the model version that a request asks for."""

    default_code = "no_worker"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, retry_after_s=10.0, param=param)


class StatementTimeout(Unavailable):
    """Postgres cancelled a statement that took too long, or waited too long for a lock."""

    default_code = "database_unavailable"


class CannotOpen(HeadraceError):
    """A sealed value cannot be opened here: its key was not given, or it was changed or moved."""

    default_code = "encryption_key_missing"


class SettingsError(HeadraceError):
    """A setting is unknown or malformed; the process must not start."""

    default_code = "invalid_settings"


class ModelLoadError(HeadraceError):
    """The model's files are missing, damaged or of a family that is not supported; the worker must not take jobs."""

    default_code = "model_load_failed"


class CannotLoadHere(ModelLoadError):
    """This machine cannot load the model: too little memory, no such folder or device. Another one may be able to."""


class VersionRejected(ModelLoadError):
    """The version has failed its verification: no worker serves it."""

    default_code = "model_rejected"
