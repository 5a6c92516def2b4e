"""The project's own tasks, before and after the model's."""

from typing import Any

from celery import Signature, chain, shared_task
from models.review import Review

from headrace.celery import infer
from store import answers


@shared_task
def ask(number: int, text: str) -> str:
    """Return the question about a review."""
    return Review(number, text).question


@shared_task
def save(answer: dict[str, Any], number: int) -> None:
    """Store the model's answer."""
    answers.save(number, answer["text"])


def judged(review: Review, model: str) -> Signature:
    """Return the chain for one review: a task of the project, the model, a task of the project.

    The model's task has the review's own id. So a chain that is sent again asks the model no second time.
    """
    judge = infer.s(model=model, sampling={"temperature": 0.0, "max_tokens": 16})
    judge.set(task_id=f"review-{review.number}")
    return chain(ask.s(review.number, review.text), judge, save.s(review.number))
