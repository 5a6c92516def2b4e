"""Headrace's tasks in a Celery app of your own: ``infer``, ``embed``, and ``job`` for any task. See docs/celery.md.

    from headrace.celery import infer
    answer = infer.delay(model="smollm2", messages=[{"role": "user", "content": "Hello"}])
    (prepare.s() | infer.s(model="smollm2") | save.s()).delay()

The job is submitted under the task's id, together with what follows the task (link, chain, chord): by the caller where
it has the address and the key, otherwise by the worker that gets the message. Once the job has ended, a thread of any
worker of your app sends a message with the same id. Then the task returns the job's output or raises its error, and
Celery does the rest, as for every task. Until that is confirmed, the message comes again, whatever was killed.

The address and the key are ``headrace_url`` and ``headrace_api_key`` of the app's configuration. Workers and readers
of results need them, callers may have them; no message has them.
"""

import json
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final
from urllib.parse import quote

import httpx2
from celery import Celery, Task, shared_task, signals, states
from celery.app.task import Context
from celery.backends.base import Backend
from celery.exceptions import Ignore, ImproperlyConfigured, Reject, TaskRevokedError
from celery.utils import uuid
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from kombu.utils import json as kombu_json
from kombu.utils.functional import maybe_list

from headrace.client import ApiUnavailable, Client, ClientError, ConnectionLost, ResourceMissing
from headrace.client.job_data import TERMINAL

log = get_logger(__name__)
# It would write a line for each request into the log of the user's worker.
logging.getLogger("httpx2").setLevel(logging.WARNING)

_LONG_POLL_S = 20.0
_LOOK_S = 1.0
_AGAIN_S = 2.0
_ENDED: Final = "headrace_ended"
"""The header of a message whose job has ended."""


class JobFailed(Exception):
    """The job failed or expired. ``code`` is the error's, as in docs/errors.md."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message, code)
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return self.message


class JobRefused(JobFailed):
    """The job was not accepted: its input is wrong, a limit is reached, or the key may not do this."""


class _Api:
    """The API as one app uses it: its address, its key, and the routes of Celery's tasks. Raises ClientError."""

    def __init__(self, url: str, key: str, max_retries: int) -> None:
        self._client = Client(url, key, max_retries=max_retries)

    def submit(self, task_id: str, message: Any, job: Mapping[str, Any]) -> dict[str, Any]:
        body = {"id": task_id, "message": message, "job": job}
        # The server makes one job of a task id, so the request may be repeated.
        return self._client.request("POST", "/v1/celery/tasks", json=body, idempotency_key=task_id)

    def read(self, task_id: str) -> dict[str, Any]:
        return self._client.request("GET", _path(task_id))

    def cancel(self, task_id: str) -> None:
        self._client.request("POST", f"{_path(task_id)}/cancel", idempotency_key=task_id)

    def confirm(self, task_id: str) -> None:
        self._client.request("POST", f"{_path(task_id)}/confirm", idempotency_key=task_id)

    def forget(self, task_id: str) -> None:
        self._client.delete(self.read(task_id)["job"]["id"])

    def ended(self, wait_s: float) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._client.request("POST", "/v1/celery/ended", json={"wait_s": wait_s})["data"]
        return found


def _path(task_id: str) -> str:
    return f"/v1/celery/tasks/{quote(task_id, safe='')}"


@cache
def _open(_process: int, url: str, key: str, max_retries: int) -> _Api:
    return _Api(url, key, max_retries)


def _api(app: Celery, max_retries: int = 5) -> _Api:
    """Return the API of an app. A forked process opens connections of its own. Raises ImproperlyConfigured."""
    url, key = app.conf.get("headrace_url"), app.conf.get("headrace_api_key")
    if not (url and key):
        raise ImproperlyConfigured("set headrace_url and headrace_api_key in the configuration of the Celery app")
    return _open(os.getpid(), str(url), str(key), max_retries)


class _Away:
    """Until when a process that met no Headrace sends messages without asking for it."""

    until = 0.0


class HeadraceTask(Task):  # type: ignore[misc]  # celery ships no annotations
    """A task whose work is a job. It holds a place in a worker only while it submits the job, or reads its end."""

    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    throws = (JobFailed,)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """Submit the job now, where this process has the address and the key; then no message is sent.

        So the task is in Postgres when the call returns. If the job is not accepted, a message is sent as for every
        task, and a worker tries again or says why.
        """
        task_id = task_id or uuid()
        request = {"id": task_id, "callbacks": _listed(link), "errbacks": _listed(link_error), "shadow": shadow}
        if not self._submit_now(args or (), kwargs or {}, request, options):
            return super().apply_async(args, kwargs, task_id, producer, link, link_error, shadow, **options)
        result = self.AsyncResult(task_id)
        if options.get("add_to_parent", True) and (parent := self.app.current_worker_task):
            parent.add_trail(result)
        return result

    def _submit_now(self, args: Any, kwargs: Any, request: dict[str, Any], options: Mapping[str, Any]) -> bool:
        """Return True if the job is stored, with what ``request`` and the options say of the message."""
        headers = options.get("headers") or {}
        needs_message = any(options.get(name) for name in ("eta", "countdown", "expires", "stamped_headers"))
        if _ENDED in headers or needs_message or self.app.conf.task_always_eager or time.monotonic() < _Away.until:
            return False
        parent = self.app.current_worker_task
        of_parent = parent.request if parent else Context()
        request |= {name: options.get(name) for name in ("chain", "chord", "group_index")}
        request |= {
            "headers": headers,
            "group": options.get("group_id"),
            "root_id": options.get("root_id") or of_parent.root_id or of_parent.id or request["id"],
            "parent_id": options.get("parent_id") or of_parent.id,
            "reply_to": options.get("reply_to") or self.app.thread_oid,
            "headrace_options": {
                name: options[name] for name in ("queue", "exchange", "routing_key", "priority") if name in options
            },
        }
        self.push_request(**request)
        try:
            self.run(*args, **kwargs)
        except Ignore:
            return True
        except Exception as error:  # noqa: BLE001 - the message says it, in a worker
            log.debug("%s is sent as a message: %s", request["id"], error)
        finally:
            self.pop_request()
        return False

    def submit_or_end(self, job: Mapping[str, Any]) -> Any:
        """Submit the job; if it has ended, return its output or raise JobFailed. Raises Ignore while it has not."""
        try:
            task = self._task_of(job)
        except (ApiUnavailable, ConnectionLost) as error:
            _Away.until = time.monotonic() + _AGAIN_S
            # The message stays in the broker, which a retry with a countdown would not promise.
            log.warning("Headrace cannot be reached, and the task is put back: %s", error.message)
            raise Reject(error, requeue=True) from error
        except ClientError as error:
            if error.is_transient:
                raise Reject(error, requeue=True) from error
            if error.status == httpx2.codes.GONE:
                raise Ignore from error  # it has ended, and was forgotten
            self.request.headrace_outcome = states.FAILURE
            raise JobRefused(error.message, error.code) from None
        found = task["job"]
        # What we sent again after the end was confirmed would send all that follows once more. Another message of an
        # ended task is its sender's, and gets the same answer.
        if found["status"] not in TERMINAL or (task["is_confirmed"] and self._is_ours):
            raise Ignore
        if self._is_now:
            raise Reject("the job has ended, and a message shall say so")
        return self._end(found)

    @property
    def _is_now(self) -> bool:
        """True in ``apply_async``, which submits the job and does not end the task."""
        return getattr(self.request, "headrace_options", None) is not None

    @property
    def _is_ours(self) -> bool:
        """True for the message that is sent once the job has ended."""
        return bool((self.request.headers or {}).get(_ENDED))

    def _task_of(self, job: Mapping[str, Any]) -> dict[str, Any]:
        api = _api(self.app, max_retries=0) if self._is_now else _api(self.app)
        if self._is_ours:
            return api.read(self.request.id)
        return api.submit(self.request.id, self._message(), job)

    def _message(self) -> Any:
        """Return the message that ends this task, as JSON: it has all that follows, and not the input."""
        headers = {**(self.request.headers or {}), _ENDED: True}
        options = getattr(self.request, "headrace_options", None) or {}
        signature = self.signature_from_request(args=(), kwargs={}, headers=headers, expires=None, **options)
        return json.loads(kombu_json.dumps(signature))  # type: ignore[no-untyped-call]  # kombu's

    def _end(self, job: Mapping[str, Any]) -> Any:
        if job["status"] == "succeeded":
            self.request.headrace_outcome = states.SUCCESS
            return job["output"]
        if job["status"] == "cancelled":
            self.backend.mark_as_revoked(
                self.request.id, "cancelled", request=self.request, store_result=not self.request.ignore_result
            )
            _confirm(self.app, self.request.id)
            raise Ignore
        self.request.headrace_outcome = states.FAILURE
        raise _error_of(job)

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Confirm the end: Celery has sent what follows, and stored the result.

        If it could not, the status is another than the job's; then the message comes again.
        """
        if status == getattr(self.request, "headrace_outcome", None):
            _confirm(self.app, task_id)


def _listed(signatures: Any) -> list[Any] | None:
    """Return one signature or several as a list, as a message has them."""
    found: list[Any] | None = maybe_list(signatures)  # type: ignore[no-untyped-call]  # kombu's
    return found


def _confirm(app: Celery, task_id: str) -> None:
    try:
        _api(app).confirm(task_id)
    except ResourceMissing as error:
        # 404: the job was refused, so there is none. 410: its contents were deleted after this worker had read the
        # output, so the worker deletes the result that it has stored. An app without a result backend has none.
        if error.status == httpx2.codes.GONE:
            with suppress(NotImplementedError):
                app.backend.forget(task_id)
    except ClientError as error:
        log.warning("the end of %s is not confirmed, so it comes again: %s", task_id, error.message)


def _error_of(job: Mapping[str, Any]) -> JobFailed:
    error = job["error"] or {}
    return JobFailed(error.get("message") or f"the job {job['status']}", error.get("code") or job["status"])


@shared_task(name="headrace.infer", base=HeadraceTask, bind=True)  # type: ignore[untyped-decorator]
def infer(self: HeadraceTask, given: Any = None, /, *, model: str = "", **fields: Any) -> Any:
    """Generate a text. ``messages`` or ``prompt``, with other fields of the input, and fields of the job such as
    ``sampling`` (docs/jobs.md).

    ``given`` is the result of the task before in a chain: a text is the message of a user, a list is the messages, and
    of another ``infer`` the text of its answer is taken. A mapping has fields. Returns the job's output: ``text``,
    ``finish_reason`` and more.
    """
    sent = _fields_of(given, fields, _chat)
    return self.submit_or_end(_body("generate", model, sent))


def _chat(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping) and isinstance(given.get("text"), str):
        given = given["text"]
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return {"messages": given}


@shared_task(name="headrace.embed", base=HeadraceTask, bind=True)  # type: ignore[untyped-decorator]
def embed(self: HeadraceTask, given: Any = None, /, *, model: str = "", **fields: Any) -> Any:
    """Return the vectors of ``texts``, as the job's output. ``given``: a text or a list of texts, in a chain."""
    sent = _fields_of(given, fields, lambda given: {"texts": [given] if isinstance(given, str) else given})
    return self.submit_or_end(_body("embed", model, sent))


@shared_task(name="headrace.job", base=HeadraceTask, bind=True)  # type: ignore[untyped-decorator]
def job(self: HeadraceTask, given: Mapping[str, Any] | None = None, /, **fields: Any) -> Any:
    """Run a job of any task: ``task``, ``model``, ``input`` and the other fields of ``POST /v1/jobs``, or ``steps``.

    ``given``, in a chain, is the input.
    """
    return self.submit_or_end(fields if given is None else {"input": given, **fields})


_JOB_FIELDS = frozenset(
    {
        "deadline_ms", "dimensions", "input", "max_attempts", "metadata", "n", "priority", "prompt_name", "retrieval",
        "sampling", "server_tools", "service_class", "truncate", "truncation", "user", "webhook",
    }
)  # fmt: skip


def _fields_of(given: Any, fields: dict[str, Any], of_value: Any) -> dict[str, Any]:
    if given is None:
        return fields
    is_fields = isinstance(given, Mapping) and "text" not in given
    return {**(dict(given) if is_fields else of_value(given)), **fields}


def _body(task: str, model: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a job; what is no field of a job is one of its input."""
    of_job = {name: value for name, value in fields.items() if name in _JOB_FIELDS}
    of_input = {name: value for name, value in fields.items() if name not in _JOB_FIELDS}
    model = model or of_input.pop("model", "")
    return {"task": task, "model": model, **of_job, "input": {**of_job.get("input", {}), **of_input}}


# ---- Results ----


def backend(app: Celery, url: str | None = None, **options: Any) -> Backend:
    """Return a result backend that asks Headrace for what it does not know itself.

    ``result_backend = "headrace.celery:backend+redis://localhost/1"``: results are in that Redis, as ever. Of a task
    without one (Redis was emptied, the result has expired, no worker of the app runs) it gives the state and the output
    of the job, which Postgres has.
    """
    inner, of_inner = app_backend(app, url or "")
    made: Backend = type("Backend", (_JobResults, inner), {})(app=app, url=of_inner, **options)
    return made


def app_backend(app: Celery, url: str) -> tuple[type[Backend], str | None]:
    """Return the class of the backend behind ours, and its address."""
    from celery.app.backends import by_url  # noqa: PLC0415 - Celery imports it as late

    found: tuple[type[Backend], str | None] = by_url(url, app.loader)
    return found


class _JobResults:
    """The part of a backend that asks Headrace."""

    app: Celery

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """Return the stored result; without one, what Headrace knows of the job."""
        found: dict[str, Any] = super().get_task_meta(task_id, cache)  # type: ignore[misc]
        if found["status"] != states.PENDING:
            return found
        try:
            known = _api(self.app, max_retries=0).read(task_id)["job"]
        except ClientError:
            return found
        return {**found, "task_id": task_id, **_meta_of(known)}

    def forget(self, task_id: str) -> None:
        """Forget the result, and delete the contents of the job if it has ended."""
        # The contents of the job first: a worker that stores the result after this call gets 410 when it confirms the
        # end of the task, and deletes the result.
        try:
            _api(self.app, max_retries=0).forget(task_id)
        except ClientError as error:
            log.debug("no job to forget: %s", error.message)
        super().forget(task_id)  # type: ignore[misc]  # the class of the backend behind ours has it


def _meta_of(job: Mapping[str, Any]) -> dict[str, Any]:
    match job["status"]:
        case "queued":
            return {"status": states.PENDING, "result": None}
        case "running":
            return {"status": states.STARTED, "result": None}
        case "succeeded":
            return {"status": states.SUCCESS, "result": job["output"]}
        case "cancelled":
            return {"status": states.REVOKED, "result": TaskRevokedError("cancelled")}
        case _:
            return {"status": states.FAILURE, "result": _error_of(job)}


# ---- In the workers of the user's app ----


class _Watcher:
    """Two threads of a worker: one sends the messages of ended jobs, one cancels the jobs of revoked tasks."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._stopped = threading.Event()
        self.discarded: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start(self) -> None:
        """Start both."""
        for turn in (self._send_ended, self._cancel_revoked):
            threading.Thread(target=partial(self._run, turn), name=turn.__name__, daemon=True).start()

    def stop(self) -> None:
        """Let them end at their next turn."""
        self._stopped.set()

    def _run(self, turn: Any) -> None:
        while not self._stopped.is_set():
            try:
                turn()
            except ClientError as error:
                log.warning("Headrace cannot be asked: %s", error.message)
                self._pause()
            except Exception:
                log.exception("the thread goes on")  # without it no task of Headrace would end
                self._pause()

    def _pause(self) -> None:
        self._stopped.wait(random.uniform(_AGAIN_S / 2, _AGAIN_S))  # noqa: S311 - not a secret

    def _send_ended(self) -> None:
        for task in _api(self._app, max_retries=0).ended(_LONG_POLL_S):
            message = kombu_json.loads(json.dumps(task["message"]))  # type: ignore[no-untyped-call]  # kombu's
            self._app.signature(message).apply_async()

    _known: frozenset[str] = frozenset()

    def _cancel_revoked(self) -> None:
        self._stopped.wait(_LOOK_S)
        revoked = frozenset(worker_state.revoked)
        for task_id in revoked - self._known:
            self._call(_api(self._app).cancel, task_id)
        self._known = revoked
        while not self.discarded.empty():
            self._call(_api(self._app).confirm, self.discarded.get())

    @staticmethod
    def _call(call: Any, task_id: str) -> None:
        """Call it; a task of the app that has no job, or one that has ended, is no error."""
        try:
            call(task_id)
        except ClientError as error:
            if error.is_transient:
                raise


_watchers: dict[int, _Watcher] = {}


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _start_watching(sender: Any = None, **_: Any) -> None:
    try:
        _api(sender.app)
    except ImproperlyConfigured as error:
        log.warning("tasks of Headrace will fail: %s", error)
        return
    _watchers[os.getpid()] = _Watcher(sender.app)
    _watchers[os.getpid()].start()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_watching(**_: Any) -> None:
    if watcher := _watchers.pop(os.getpid(), None):
        watcher.stop()


@signals.task_revoked.connect  # type: ignore[untyped-decorator]
def _note_discarded(sender: Any = None, request: Any = None, **_: Any) -> None:
    """The worker discarded a message of a revoked task: it must not come again."""
    watcher = _watchers.get(os.getpid())
    if watcher is not None and isinstance(sender, HeadraceTask):
        watcher.discarded.put(request.id)


# ---- Headrace's own workers: ``celery -A headrace.celery inspect ping`` ----


def __getattr__(name: str) -> Any:
    """Make ``app`` when Celery's command line looks for it: Headrace's own, at REDIS_URL."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _own_app()


@cache
def _own_app() -> Celery:
    from headrace.store.errors import SettingsError  # noqa: PLC0415 - an app of a user has no such settings
    from headrace.store.redis.celery_queue import celery_app  # noqa: PLC0415 - as above
    from headrace.store.settings import load_settings, require_services  # noqa: PLC0415 - as above

    try:
        app = celery_app(require_services(load_settings(), only_redis=True))
    except SettingsError as error:
        raise SystemExit(error.message) from None
    signals.celeryd_init.connect(partial(_refuse_worker, app), weak=False)
    return app


def _refuse_worker(own: Celery, instance: Any = None, options: Mapping[str, Any] | None = None, **_: Any) -> None:
    """A worker of Celery's command line has no model. Say what to type instead."""
    if instance is not None and instance.app is own:
        queues = (options or {}).get("queues") or "MODEL"
        model = queues if isinstance(queues, str) else next(iter(queues))
        raise SystemExit(f"A worker of Headrace loads a model first. Type instead: headrace worker --model {model}")
