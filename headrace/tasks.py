"""A task of your own: what its package declares, and how its runner computes a batch. See docs/extending.md.

The package names its ``Task`` as an entry point of the group ``headrace.tasks``. Only the standard library is imported
here; the schemas are classes of pydantic in the package itself.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Runner: TypeAlias = Callable[..., Sequence[Any]]
"""Batch in, batch out: for each input its output, in order, or the exception because of which it has none.

It is called with the list of inputs, and with ``with_context`` also with a list of their ``Context``."""


class TaskError(Exception):
    """An input that the runner cannot compute. The job's error shows this text: name the fault, quote no content."""


class JobOver(Exception):
    """The job was cancelled, its deadline has passed, or another worker has it: its output is of no use any more."""


@dataclass(frozen=True, slots=True)
class MadeFile:
    """A file that a runner has made. ``facts``: what else is shown of it."""

    name: str
    content: bytes
    media_type: str
    facts: Mapping[str, Any]


class Context:
    """What a runner may do for one input beside its output. Here it keeps what it is given, for ``try_out``.

    ``uploaded``: the contents that ``read`` returns, by id. ``resumed``: the state of an earlier attempt.
    """

    def __init__(self, uploaded: Mapping[str, bytes] | None = None, resumed: bytes | None = None) -> None:
        self.files: list[MadeFile] = []
        self.told: list[tuple[float, float, str]] = []
        self.states: list[bytes] = []
        self.uploaded = uploaded or {}
        self._resumed = resumed

    def progress(self, done: float, total: float, message: str = "", *, preview: str | None = None) -> None:
        """Tell the caller how far the input is. Call it as often as you like: at most a few a second are sent.

        ``preview``: how the result looks so far, a data URL of at most 256 KiB. One is always sent, so make few.

        Raises JobOver, which ends the input here: let it through.
        """
        self.told.append((done, total, message))

    def checkpoint(self, state: bytes | Callable[[], bytes]) -> None:
        """Save from where another attempt can go on, should this worker be lost: ``resumed`` returns it there.

        Call it as often as you like: one is stored every few seconds. A function is called only then, and returns at
        most 64 MiB. Files that were made before are not part of it. Raises JobOver, as ``progress``.
        """
        self.states.append(state() if callable(state) else state)

    @property
    def resumed(self) -> bytes | None:
        """The newest state that an earlier attempt of the job has saved; None: begin anew.

        The worker that saved it may have had other versions of your libraries: name them in the state if they matter.
        """
        return self._resumed

    @property
    def cancelled(self) -> bool:
        """True if nobody waits for the output any more: the job was cancelled, is late, or another worker has it."""
        return False

    def file(
        self,
        name: str,
        content: bytes,
        media_type: str,
        *,
        width: int | None = None,
        height: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Make a file of the result. It exists when the job has succeeded, and not before.

        ``width`` and ``height`` in pixels or ``seconds`` are shown beside its type, size and SHA-256. Raises an error
        for a bad name or type, a file that is too large, a full storage or quota: let it through, it names itself.
        """
        facts = {"width": width, "height": height, "seconds": seconds}
        known = {key: value for key, value in facts.items() if value is not None}
        self.files.append(MadeFile(name, bytes(content), media_type, known))

    def read(self, file_id: str) -> bytes:
        """Return the content of a file of the caller, such as an upload that the input names."""
        if file_id not in self.uploaded:
            raise TaskError(f"no file {file_id}")
        return self.uploaded[file_id]


def _one(_input: Any) -> int:
    return 1


@dataclass(frozen=True, slots=True)
class Task:
    """One task. ``input`` and ``output`` are subclasses of ``pydantic.BaseModel``; a job has one input.

    ``name`` is what requests say in ``task``. ``runner`` names a function as ``package.module:function``. A worker
    calls it once, with the folder of the model version (None for a version without files), and it returns a
    ``Runner``. Other processes never import that module, so it may import torch. ``example`` is a small input: a
    version with files is tried with it before it takes jobs, and the documentation shows it.
    """

    name: str
    input: type[Any]
    output: type[Any]
    runner: str
    example: Mapping[str, Any]
    count_tokens: Callable[[Any], int] = _one
    """The cost of an input, from 1 to ``most_tokens``: limits, usage and the size of a batch count it."""

    most_tokens: int = 8192
    """Inputs that cost more are refused."""

    output_texts: tuple[str, ...] | None = None
    """The fields of the output that hold text: a tenant's policy checks their texts. None: it checks every text."""

    is_call: bool = False
    """The runner waits more than it computes: for another server, for a search. Each input is then a batch of its own,
    on a thread of its own, and many run at a time. What is cancelled or too slow may still happen."""

    call_timeout_s: float = 60.0
    """A call that takes longer fails with ``call_timed_out``."""

    with_context: bool = False
    """The runner takes a ``Context`` for each input as its second argument: for files, and to tell of progress."""

    summary: str = ""
    """What the task does, in a few words, for the documentation."""


def load_runner(task: Task, folder: Path | None) -> Runner:
    """Return the runner for a folder. Raises what the task's own code raises."""
    module, _, name = task.runner.partition(":")
    runner: Runner = getattr(importlib.import_module(module), name)(folder)
    return runner


def run_batch(
    task: Task, runner: Runner, inputs: Sequence[Any], contexts: Sequence[Context] | None = None
) -> list[Any]:
    """Return for each input its output or the exception that it failed with. Raises what the runner raises.

    Outputs may be given as the fields of ``task.output``; one that does not fit is an exception in its place.
    """
    more = ([Context() for _ in inputs] if contexts is None else list(contexts),) if task.with_context else ()
    found = runner(list(inputs), *more)
    if isinstance(found, str | bytes) or not isinstance(found, Sequence) or len(found) != len(inputs):
        raise TaskError(f"the runner of {task.name} must return a list with one output for each of its inputs")
    return [_checked(task, one) for one in found]


def _checked(task: Task, found: Any) -> Any:
    if isinstance(found, Exception | task.output):
        return found
    try:
        return task.output.model_validate(found)
    except Exception as error:  # noqa: BLE001 - validators of the task's author may raise any error
        return error


def try_out(
    task: Task,
    inputs: Sequence[Mapping[str, Any]],
    folder: Path | None = None,
    contexts: Sequence[Context] | None = None,
) -> list[Any]:
    """Compute inputs in one batch as a worker would, for tests: each has its output, or the exception it failed with.

    A batch that raises is computed again one by one, so that a bad input fails alone. Raises pydantic's ValidationError
    for an input that does not fit the schema. ``contexts``: one for each input, which has its files and progress then.
    """
    runner = load_runner(task, folder)
    read = [task.input.model_validate(one) for one in inputs]
    try:
        return run_batch(task, runner, read, contexts)
    except Exception:  # noqa: BLE001 - a runner may raise any error; its inputs are tried one by one
        own = [None] * len(read) if contexts is None else [[one] for one in contexts]
        return [_alone(task, runner, one, context) for one, context in zip(read, own, strict=True)]


def _alone(task: Task, runner: Runner, one: Any, context: list[Context] | None) -> Any:
    if context is not None:
        context[0].files.clear()
        context[0].told.clear()
    try:
        return run_batch(task, runner, [one], context)[0]
    except Exception as error:  # noqa: BLE001 - a runner may raise any error; it is the outcome of this input
        return error
