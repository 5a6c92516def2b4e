"""The one list of features, and how each process finds the parts that they bring.

A feature is a folder ``features/NAME``. Its file for a kind of part defines ``PART``, of the type that the core
declares for this kind; a file that is absent brings nothing. Each process imports only the kinds that it runs.

    seal         ``store.db.seal_part``: how contents are stored, such as encrypted
    tables       tables of the database: importing the file adds them
    task         ``store.tasks.task_spec``: the description of a task
    inputs       ``prompts.tasks.task_inputs``: how its requests become the model's input
    contents     ``workers.images.image_source``: the files that images of a job may name
    results      ``workers.runs.result_files``: where files that jobs make are stored
    model        ``workers.tasks.task_model``: what loads its models, and may import torch
    served       ``workers.tasks.encoding``: what reads its jobs, if models of other tasks run them
    task_routes  ``producer_api.tasks.task_routes``: its URLs, and how a batch reads them
    lines        ``producer_api.tasks.line_urls``: URLs with a name in them that a batch may have
    api          ``producer_api.api_part``: other routes
    submission   ``producer_api.submission.submission_hook``: what happens to requests before and after they are stored
    output       ``workers.runs.output_guard``: what reads the outputs of jobs, and texts that come to a worker
    ended        ``store.jobs.job_rows``: what is written in the transaction that ends jobs
    parents      ``store.jobs.parent_part``: what follows where a job with a parent, a step, begins or ends
    parent_work  ``workers.runs.parent_work``: what a worker does for such a job
    end_events   ``store.jobs.end_events``: the webhook event of the end of its jobs, if a face has one of its own
    questions    ``features.flows.retrieval_steps``: what flows need of vector stores
    erasure      ``store.jobs.erasure``: how its own contents are erased
    errors       ``producer_api.server.error_form``: the form of errors on routes of a face
    dispatcher   ``workers.dispatcher.dispatcher_part``: duties, probes, what runs while a dispatcher leads
    verbs        ``cli.groups``: commands
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TypeVar

FEATURES: tuple[str, ...] = (
    "openai",
    "responses",
    "celery_tasks",
    "templates",
    "anthropic",
    "audit",
    "files",
    "rollouts",
    "hosts",
    "limits",
    "planner",
    "mcp_server",
    "cheap_hours",
    "flows",
    "batches",
    "schedules",
    "console",
    "response_cache",
    "encryption",
    "retention",
    "webhooks",
    "encoders.embed",
    "encoders.rerank",
    "encoders.classify",
    "encoders.token_classify",
    "encoders.score",
    "images.classify",
    "images.zero_shot",
    "diffusion.generate",
    "diffusion.edit",
    "diffusion.video",
    "retrieval",
    "policy",
    "predict",
    "recommend",
    "transcribe",
    "speech",
)
"""Every feature, in the order in which their parts run."""

Part = TypeVar("Part")


def parts(kind: str, of: type[Part]) -> list[Part]:
    """Return the parts of a kind, in the order of ``FEATURES``. Raises TypeError for one that is not of the type."""
    found = []
    for name in with_part(kind):
        part = import_module(name).PART
        if not isinstance(part, of):
            raise TypeError(f"{name}.PART is no {of.__name__}")
        found.append(part)
    return found


def with_part(kind: str) -> list[str]:
    """Return the modules of this kind of part."""
    modules = (f"headrace.features.{feature}.{kind}" for feature in FEATURES)
    return [module for module in modules if find_spec(module) is not None]
