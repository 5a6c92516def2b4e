"""The runner of a task of another package in the engine of encoders: faults stay with their inputs."""

from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

import pytest
from pydantic import BaseModel

from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.requests import EncodeRequest, EncodeRow, NumericalError, OutOfMemory, RunnerFailed
from headrace.models.runners.own_runner import OwnRunner
from headrace.tasks import Task, TaskError
from tests.processes import WAIT_S
from tests.refusals import Naming


class Words(BaseModel):
    text: str


class Length(BaseModel):
    length: float
    text: str = ""


TASK = Task(name="length", input=Words, output=Length, runner="a.b:load", example={"text": "x"})


def measure(batch: Sequence[Words]) -> list[Any]:
    def one(text: str) -> Any:
        match text:
            case "raise":
                raise ValueError("secret")
            case "exit":
                raise SystemExit(3)
            case "cancelled":
                raise CancelledError
            case "memory":
                raise MemoryError
            case "refused":
                return TaskError("no numbers")
            case "nan":
                return Length(length=float("nan"))
            case "nul":
                return Length(length=1, text="\0")
            case "misfit":
                return {"length": "secret"}
        return {"length": len(text)}

    return [one(each.text) for each in batch]


@contextmanager
def engine(run: Callable[[Sequence[Words]], Any]) -> Iterator[EncodeEngine]:
    made = EncodeEngine(OwnRunner(TASK, run), EncodeConfig())
    try:
        yield made
    finally:
        made.stop(WAIT_S)


def outcomes(texts: Sequence[str], run: Callable[[Sequence[Words]], Any] = measure) -> list[Any]:
    """The output of each text as bytes, or its error. All are submitted before the first step."""
    with engine(run) as made:
        futures = [
            made.submit(EncodeRequest(f"{number}", ((0,),), Words(text=text))) for number, text in enumerate(texts)
        ]
        made.start()
        return [future.exception(WAIT_S) or future.result(WAIT_S).vectors[0] for future in futures]


def test_a_bad_input_fails_alone() -> None:
    sizes: list[int] = []

    def counted(batch: Sequence[Words]) -> list[Any]:
        sizes.append(len(batch))
        return measure(batch)

    assert outcomes(["a", "bb", "ccc"], counted) == [b'{"length": %d.0, "text": ""}' % size for size in (1, 2, 3)]
    assert sizes == [3]

    bad = ["raise", "exit", "cancelled", "refused", "nul", "misfit"]
    found = outcomes(["a", *bad, "nan", "bb"])
    assert [type(one) for one in found] == [bytes, *[RunnerFailed] * len(bad), NumericalError, bytes]
    said = dict(zip(bad, map(str, found[1:-2]), strict=True))
    assert said["raise"] == Naming(" length ", "ValueError (test_own_runner.py:")
    assert said["refused"] == "no numbers"
    assert said["nul"] == Naming("output", "U+0000")
    assert "SystemExit" in said["exit"]
    assert "CancelledError" in said["cancelled"]
    assert "ValidationError" in said["misfit"]
    assert "secret" not in str(said)
    assert "not finite" in str(found[-2])
    assert not any(one.retryable for one in found[1:-1])


def test_what_json_has_no_type_for_is_written_as_pydantic_does() -> None:
    class Made(BaseModel):
        on: date

    task = Task(name="made", input=Words, output=Made, runner="a.b:load", example={"text": "x"})
    runner = OwnRunner(task, lambda batch: [{"on": date(2026, 1, 2)}])
    assert runner.run([EncodeRow("r", (0,), Words(text="a"))]) == [b'{"on": "2026-01-02"}']


def test_too_little_memory_is_told_as_such() -> None:
    (found,) = outcomes(["memory"])
    assert isinstance(found, OutOfMemory)


@pytest.mark.parametrize("wrong", [[], None, "ab", [Length(length=1)] * 3])
def test_a_runner_must_return_one_output_for_each_input(wrong: Any) -> None:
    found = outcomes(["a", "b"], lambda _batch: wrong)
    assert [(type(one), str(one)) for one in found] == [(RunnerFailed, Naming(" length ", " list "))] * 2


def test_the_words_of_an_error_are_shown_for_its_own_input_and_cut(caplog: pytest.LogCaptureFixture) -> None:
    long = "x" * 600

    def refuse(_batch: Sequence[Words]) -> Any:
        raise TaskError(long)

    runner = OwnRunner(TASK, refuse)
    assert runner.context_window == TASK.most_tokens
    rows = [EncodeRow(f"{number}", (0,), Words(text="a")) for number in range(2)]
    with pytest.raises(RunnerFailed) as alone:
        runner.run(rows[:1])
    assert str(alone.value) == long[:500]
    with pytest.raises(RunnerFailed) as together:
        runner.run(rows)
    place = caplog.messages[-1].rpartition("place=")[2]
    assert str(together.value) == Naming(" length ", f"TaskError ({place})")
    assert place.startswith("test_own_runner.py:")
    assert caplog.messages[-1] == f"runner_failed task=length error=TaskError place={place}"
    found = OwnRunner(TASK, lambda batch: [TaskError(long), Length(length=2)]).run(rows)
    assert [str(found[0]), found[1]] == [long[:500], b'{"length": 2.0, "text": ""}']
