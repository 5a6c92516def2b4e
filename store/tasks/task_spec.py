"""The description of one task: what the store, the API and the command line need to know of it without its code."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from headrace.store.payloads.job_payload import JobOrder
from headrace.store.settings import Settings


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task. The task's other parts have the same ``name``, in the ``tasks`` folder of each side.

    ``request`` is the body of ``POST /v1/jobs`` for the task, ``output`` the schema of its outputs. ``urls`` are the
    paths of the API that make jobs of the task, the main one first. ``runner`` and ``fake_runner`` are the kinds of
    model version that serve it, with weights and without; a task without them is ``served_by`` the versions of other
    tasks. ``purpose`` continues the sentence "the model NAME ..." in the refusal of another task's request.
    """

    name: str
    request: type[JobOrder]
    output: type[BaseModel]
    urls: tuple[str, ...]
    runner: str = ""
    fake_runner: str = ""
    purpose: str = ""
    served_by: tuple[str, ...] = ()
    """The names of other tasks whose versions serve this one too."""

    external_runners: tuple[str, ...] = ()
    """The kinds of version that an inference server runs: ``store.registry.engine_spec``."""

    has_sampling: bool = False
    """True if the model chooses tokens: such versions have sampling defaults, and may have weights of 8 bits."""

    delta_field: str = "text"
    """The name of a delta in `job.delta`. `text`: deltas are the text of the answer."""

    bulky_outputs: tuple[str, ...] = ()
    """Fields of the output that may be megabytes: lists of jobs leave them out, and big writes are divided."""

    is_from_outside: bool = False
    """True if its output may have texts that no policy has seen, as those of calls have: in a job of several steps the
    policy for inputs sees them before a later step has them."""

    has_many_texts: bool = False
    """True if a request may have thousands of inputs: the bound of its body is ``max_embedding_body_bytes``."""

    has_progress: bool = False
    """True if its jobs may tell how far they are (``store.streams.stream_log.Progress``)."""

    cost_is_time: bool = False
    """True if a job takes as long as its cost says, whatever runs beside it: a deadline that is shorter is refused."""

    form_bytes: Callable[[Settings], int] | None = None
    """If the main URL takes a form with a file: the most bytes of the file. Its route reads the form block by block."""

    url_example: Mapping[str, Any] | None = None
    """The body for the main URL, without the model, that `headrace up` shows; None: it shows `headrace submit`."""

    file_example: str | None = None
    """A file for the form of the main URL, which takes ``file`` and ``model``, that `headrace up` shows instead."""

    answer_file: str | None = None
    """A name for the answer of the main URL, if that is not text: `headrace up` shows how to save it."""

    examples: Mapping[str, Any] = field(default_factory=dict)
    """OpenAPI examples of the request, by name."""
