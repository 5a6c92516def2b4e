"""The runner of a task of another package as an ``Encoder``: the bytes of a row are its output as JSON.

What the runner raises becomes the error of its job. Only the text of a ``TaskError`` is shown: that of other exceptions
often quotes the input.
"""

import json
import logging
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.models.engine.requests import EncodeRow, EngineError, RunnerFailed
from headrace.models.engine.runner import is_out_of_memory
from headrace.tasks import Context, JobOver, Runner, Task, TaskError, run_batch

log = logging.getLogger(__name__)

MAX_SHOWN_CHARS = 500


class RunContext(Context):
    """A context that a worker gives to a runner: a pass may run again, because another input failed in it."""

    def begin(self, is_wanted: Callable[[], bool]) -> None:
        """Forget what an earlier run of the input made. ``is_wanted``: as in ``EncodeRow``."""
        self.files.clear()
        self.told.clear()


@dataclass(frozen=True, slots=True)
class OwnInput:
    """The options of a row: an input and its context."""

    value: Any
    context: RunContext


class OwnRunner:
    """An ``Encoder`` of whole inputs, which are the options of their rows."""

    def __init__(self, task: Task, runner: Runner) -> None:
        self.context_window = task.most_tokens
        self._task = task
        self._runner = runner

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | Exception | None]:
        """Return each row's output as JSON, or why it has none; None for one with a number that is not finite.

        Raises RunnerFailed if the whole batch failed.
        """
        try:
            if self._task.with_context:
                found = self._run_with_contexts(rows)
            else:
                found = run_batch(self._task, self._runner, [row.options for row in rows])
        except (Exception, SystemExit, CancelledError) as error:  # foreign code must not end the worker
            if isinstance(error, EngineError) or (isinstance(error, Exception) and is_out_of_memory(error)):
                raise
            raise self._failed(error, is_alone=len(rows) == 1) from error
        return [self._written(one) for one in found]

    def _run_with_contexts(self, rows: Sequence[EncodeRow]) -> list[Any]:
        """Run inputs with their contexts. The example of the self-test is an input alone, and its files go nowhere."""
        given = [row.options for row in rows]
        alone = [one if isinstance(one, OwnInput) else OwnInput(one, RunContext()) for one in given]
        for one, row in zip(alone, rows, strict=True):
            one.context.begin(row.is_wanted)
        return run_batch(self._task, self._runner, [one.value for one in alone], [one.context for one in alone])

    def _written(self, found: Any) -> bytes | Exception | None:
        try:
            if isinstance(found, Exception):
                raise found
            output = found.model_dump(mode="json")
            try:
                text = json.dumps(output, allow_nan=False)
            except ValueError:
                return None
            if "\\u0000" in text:
                raise TaskError("the output has the character U+0000, which cannot be stored")
            return text.encode()
        except Exception as error:  # noqa: BLE001 - each becomes the error of its own job
            return self._failed(error, is_alone=True)

    def _failed(self, error: BaseException, *, is_alone: bool) -> RunnerFailed:
        """Return the error of a job. ``is_alone``: the exception is about one input, so its text may name it."""
        if isinstance(error, JobOver):
            return RunnerFailed("the runner stopped")  # nobody sees it: the engine ends the request for its own reason
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "unknown"
        log.warning("runner_failed task=%s error=%s place=%s", self._task.name, type(error).__name__, place)
        if isinstance(error, TaskError) and is_alone:
            return RunnerFailed(str(error)[:MAX_SHOWN_CHARS])
        return RunnerFailed(f"the runner of the task {self._task.name} raised {type(error).__name__} ({place})")
