"""The engine's counters since its start. Its thread writes them; they are read under its lock."""

from collections import deque
from typing import Any

from models.engine.requests import EngineStats

NUM_RECENT_BATCHES = 128


class EngineCounters:
    """Counts of steps, tokens and outcomes, and how well the batches were filled."""

    def __init__(self) -> None:
        self._steps = 0
        self._batches = 0
        self._batch_rows = 0
        self._peak_batch = 0
        self._recent: deque[int] = deque(maxlen=NUM_RECENT_BATCHES)
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._completed = 0
        self._failed = 0

    def count_pass(self) -> None:
        """Count a forward pass that ended, well or not."""
        self._steps += 1

    def count_batch(self, num_rows: int, num_steady_rows: int) -> None:
        """Count the rows of a pass. ``num_steady_rows``, those without prefill chunks, make the mean batch."""
        self._batches += num_steady_rows > 0
        self._batch_rows += num_steady_rows
        self._peak_batch = max(self._peak_batch, num_rows)
        self._recent.append(num_rows)

    def count_tokens(self, *, prompt: int = 0, output: int = 0) -> None:
        """Count tokens of prompts that were taken in, and tokens that were generated."""
        self._prompt_tokens += prompt
        self._output_tokens += output

    def count_outcomes(self, completed: int, failed: int) -> None:
        """Count requests that ended."""
        self._completed += completed
        self._failed += failed

    def stats(
        self, *, running: int, waiting: int, max_slots: int, last_step_age_s: float, **others: Any
    ) -> EngineStats:
        """Return the statistics; ``others`` are the fields of EngineStats that are not counted here."""
        return EngineStats(
            steps=self._steps,
            running=running,
            waiting=waiting,
            max_slots=max_slots,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            completed=self._completed,
            failed=self._failed,
            mean_batch=self._batch_rows / self._batches if self._batches else 0.0,
            peak_batch=self._peak_batch,
            last_step_age_s=last_step_age_s,
            recent_batches=tuple(self._recent),
            **others,
        )
