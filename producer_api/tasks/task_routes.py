"""The description of a task's part of the API: its routers, and the readers of its URLs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastapi import APIRouter

from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError
from headrace.store.jobs.face_row import FaceRow
from headrace.store.jobs.jobs import Job
from headrace.store.tasks.registry import JobRequest
from headrace.store.tasks.task_spec import TaskSpec


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A body that was sent to a task's URL, as a job.

    ``answer`` returns the route's answer of the job that has ended; it raises JobUnanswered for a job that has not
    succeeded. ``complain`` returns an error about the job with the names of the body's fields. ``response`` is stored
    beside the job. ``is_stored``: as in ``producer_api.submission.draft_job.DraftJob``.

    Of a job whose model calls tools of the server: ``with_tools`` returns the request with the tools that must be
    looked up for its tenant, and ``read_answer`` the answer, whose turns are no part of the job. Both block.
    """

    job: JobRequest
    answer: Callable[[Job], dict[str, Any]]
    complain: Callable[[HeadraceError], HeadraceError]
    response: FaceRow | None = None
    is_stored: bool | None = None
    with_tools: Callable[[Database, str], "ParsedRequest"] | None = None
    read_answer: Callable[[Database, Job], dict[str, Any]] | None = None


ParseBody: TypeAlias = Callable[[Mapping[str, Any]], ParsedRequest]
"""Raises InvalidRequest, or pydantic's ValidationError, for a body that the route would refuse."""


@dataclass(frozen=True, slots=True)
class TaskRoutes:
    """One task's part of the API: of a feature the ``PART`` of its file ``task_routes``.

    ``urls`` are those that a batch may name, each with the reader of a line's body.
    """

    spec: TaskSpec
    routers: tuple[APIRouter, ...]
    urls: Mapping[str, ParseBody]
