"""Builds the answer of a job with several choices from the answers of each of them, in the format of one OpenAI route.

Each choice is read as a job with that output alone; here it gets its index. No HTTP and no I/O.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from headrace.producer_api.streaming.answers import Answer, Entries, answer_of, num_choices_of
from headrace.store.jobs.jobs import Job

NewAnswer = Callable[[Job, int], Answer]
"""Makes the answer of a job's choice with this number."""


def answer_to(job: Job, new_answer: NewAnswer) -> Answer:
    """Return the answer of a job with one choice or several."""
    num_choices = num_choices_of(job)
    return new_answer(job, 0) if num_choices == 1 else ChoicesAnswer(job, num_choices, new_answer)


class ChoicesAnswer:
    """The answer of a job with ``num_choices`` choices."""

    def __init__(self, job: Job, num_choices: int, new_answer: NewAnswer) -> None:
        self._choices = [new_answer(_own(job, number), number) for number in range(num_choices)]

    def full_answer(self, job: Job) -> dict[str, Any]:
        """Return the answer of a succeeded job; raise JobUnanswered for any other."""
        answer_of(job)
        answers = [one.full_answer(_own(job, number)) for number, one in enumerate(self._choices)]
        choices = [{**one["choices"][0], "index": number} for number, one in enumerate(answers)]
        return {**answers[0], "choices": choices}

    def opening(self) -> Sequence[dict[str, Any]]:
        """Return the chunks before the first text."""
        return self._choices[0].opening()

    def pieces(self, text: str, entries: Entries = ()) -> Sequence[dict[str, Any]]:
        """Return the chunks for the next text of the first choice."""
        return self.pieces_of(0, text, entries)

    def pieces_of(self, choice: int, text: str, entries: Entries) -> Sequence[dict[str, Any]]:
        """Return the chunks for the next text of a choice."""
        return [_indexed(chunk, choice) for chunk in self._choices[choice].pieces(text, entries)]

    def closing(self, job: Job) -> Sequence[dict[str, Any]]:
        """Return the last chunks of a succeeded job; raise JobUnanswered for any other."""
        answer_of(job)
        chunks = [
            _indexed(chunk, number)
            for number, one in enumerate(self._choices)
            for chunk in one.closing(_own(job, number))
        ]
        # The last chunk may have the token counts; it comes once.
        return [chunk for chunk in chunks[:-1] if chunk["choices"]] + chunks[-1:]


def _own(job: Job, number: int) -> Job:
    """Return the job as if it had this choice only."""
    return job if job.output is None else replace(job, output=job.output["choices"][number])


def _indexed(chunk: dict[str, Any], number: int) -> dict[str, Any]:
    return {**chunk, "choices": [{**choice, "index": number} for choice in chunk["choices"]]}
