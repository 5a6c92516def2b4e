"""Orders that are jobs of several steps: their requests, and what each step must answer.

A step's prompt is the order's, or the text of another step, so every answer follows from the order alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.oracle import answer


@dataclass(frozen=True)
class Step:
    """A step. ``source``: the reference to its prompt."""

    name: str
    source: str
    needs: tuple[str, ...] = ()


# The last step has the answer of the job.
SHAPES: Mapping[str, Sequence[Step]] = {
    "pair": (Step("first", "input.prompt"), Step("second", "first.output.text", ("first",))),
    "chain": (
        Step("first", "input.prompt"),
        Step("second", "first.output.text", ("first",)),
        Step("third", "second.output.text", ("second",)),
    ),
    "join": (
        Step("left", "input.prompt"),
        Step("right", "input.aside"),
        Step("both", "right.output.text", ("left", "right")),
    ),
}


def flow_request(shape: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a flow. ``job``: the request of the same order as a job of one step."""
    of_step = {name: job[name] for name in ("model", "sampling")}
    steps = [
        {"name": step.name, "needs": step.needs, "input": {"prompt": {"$from": step.source}}, **of_step}
        for step in SHAPES[shape]
    ]
    of_job = {name: job[name] for name in job.keys() - of_step.keys()}
    return {**of_job, "input": _inputs(job["input"]["prompt"]), "steps": steps}


def answers(shape: str, prompt: str, max_tokens: int, *, ends: bool = True) -> dict[str, str]:
    """Return the answer of each step by its name, the last one that of the job."""
    values = {f"input.{name}": text for name, text in _inputs(prompt).items()}
    texts: dict[str, str] = {}
    for step in SHAPES[shape]:
        texts[step.name] = answer(values[step.source], max_tokens, ends=ends)
        values[f"{step.name}.output.text"] = texts[step.name]
    return texts


def _inputs(prompt: str) -> dict[str, str]:
    return {"prompt": prompt, "aside": f"{prompt} Or not."}
