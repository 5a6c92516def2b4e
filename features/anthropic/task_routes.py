"""Anthropic's messages as a face of the task ``generate``."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headrace.features.anthropic import message_routes
from headrace.features.anthropic.message_answer import MessageAnswer
from headrace.features.anthropic.message_request import MessageRequest, as_sent, to_job
from headrace.features.anthropic.turns_message import TurnsMessageAnswer
from headrace.producer_api.jobs.synchronous import read_turns
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.db.database import Database
from headrace.store.jobs.jobs import Job
from headrace.store.tasks.generate import GENERATE


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    request = MessageRequest.model_validate(body)
    parsed = ParsedRequest(to_job(request), lambda job: MessageAnswer(job).full_answer(job), as_sent)
    return parsed if request.server_tools is None else replace(parsed, read_answer=_answer_with_turns)


def _answer_with_turns(db: Database, job: Job) -> dict[str, Any]:
    answer_of(job)
    answer = TurnsMessageAnswer(job)
    read_turns(db, job, answer)
    return answer.full_answer(job)


PART = TaskRoutes(GENERATE, (message_routes.router,), {"/v1/messages": _parse})
