"""The runner that fails on request: the step of a marked prompt, or the marked row alone, and no other."""

import threading
from dataclasses import replace

import pytest

from headrace.models.engine.requests import EngineRequest, Grammar, RequestInvalid, SamplingParams
from headrace.models.engine.runner import Row, Sampled, StepPlan
from headrace.models.fakes.fake import FakeRunner
from headrace.models.fakes.faults import EXIT_CODE, Fault, FaultyRunner
from headrace.models.loading.load import with_faults
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store import failpoints
from headrace.store.failpoints import FailpointRaised
from headrace.store.settings import Settings
from tests.models.engine.rig import ask

MARKS = {"<e>": Fault.EXIT, "<r>": Fault.RAISE, "<o>": Fault.OOM, "<n>": Fault.NAN, "<h>": Fault.HANG}


def plan(*prompts: str) -> StepPlan:
    """A step that prefills these prompts; their requests' ids are the prompts."""
    rows = []
    for number, prompt in enumerate(prompts):
        request = ask(prompt, request_id=prompt)
        rows.append(Row(request, request.prompt, start=0, blocks=(number,), output=(), sample=True))
    return StepPlan(tuple(rows))


def faulty(exit_codes: list[int] | None = None) -> FaultyRunner:
    codes: list[int] = [] if exit_codes is None else exit_codes
    decode = ByteTokenizer().decode
    return FaultyRunner(FakeRunner(num_blocks=8), MARKS, decode=decode, exit_now=codes.append)


def test_a_step_without_a_mark_is_the_runners_own() -> None:
    assert faulty().run(plan("hello", "<x>")) == FakeRunner(num_blocks=8).run(plan("hello", "<x>"))


def test_it_has_the_sizes_and_the_refusals_of_its_runner() -> None:
    inner = FakeRunner(num_blocks=8, block_tokens=4, context_window=99, spare_tokens=3, lookahead_tokens=2)
    inner.default_settings = {"max_slots": 7}
    runner = FaultyRunner(inner, MARKS, decode=ByteTokenizer().decode)
    names = [
        "context_window",
        "eos_token_ids",
        "num_blocks",
        "block_tokens",
        "spare_tokens",
        "lookahead_tokens",
        "default_settings",
    ]
    assert {name: getattr(runner, name) for name in names} == {name: getattr(inner, name) for name in names}
    with pytest.raises(RequestInvalid, match="cannot be followed"):
        runner.check(EngineRequest("a", (1,), SamplingParams(max_tokens=5, grammar=Grammar("regex", "[a"))))


def test_nan_meets_its_own_row() -> None:
    wet, sound = faulty().run(plan("wet <n>", "sound"))
    assert wet == Sampled("wet <n>", None, finite=False)
    assert [sound] == FakeRunner(num_blocks=8).run(plan("sound"))


@pytest.mark.parametrize(("prompt", "error"), [("a <r> b", RuntimeError), ("a <o>", MemoryError)])
def test_an_error_meets_the_whole_step(prompt: str, error: type[Exception]) -> None:
    runner = faulty()
    for _ in range(2):
        with pytest.raises(error):
            runner.run(plan("innocent", prompt))
    assert runner.run(plan("innocent"))


def test_exit_ends_the_process_in_the_step() -> None:
    codes: list[int] = []
    faulty(codes).run(plan("<e>", "innocent"))
    assert codes == [EXIT_CODE]


def test_hang_never_comes_back() -> None:
    hung = threading.Thread(target=faulty().run, args=(plan("<h>"),), daemon=True)
    hung.start()
    hung.join(0.3)
    assert hung.is_alive()


def test_settings_without_faults_change_nothing() -> None:
    runner = FakeRunner()
    assert with_faults(runner, Settings(), ByteTokenizer().decode) is runner


def test_settings_name_the_marks() -> None:
    settings = Settings(environment="test", model_faults="nan:rotten egg, raise:flat tyre")
    runner = with_faults(FakeRunner(num_blocks=8), settings, ByteTokenizer().decode)
    assert [one.finite for one in runner.run(plan("a rotten egg", "rotten"))] == [False, True]
    with pytest.raises(RuntimeError):
        runner.run(plan("flat tyre"))


def test_the_midway_failpoint_is_in_every_step() -> None:
    settings = Settings(environment="test", failpoints="batch.midway=raise@2")
    failpoints.install(settings.failpoints)
    try:
        runner = with_faults(FakeRunner(num_blocks=8), settings, ByteTokenizer().decode)
        runner.run(plan("one"))
        with pytest.raises(FailpointRaised):
            runner.run(plan("two"))
    finally:
        failpoints.install("")


def test_a_request_that_has_ended_is_forgotten() -> None:
    runner = faulty()
    (row,) = plan("sound").rows
    sound = replace(row, request=replace(row.request, id="<n>"))
    assert [one.finite for one in runner.run(plan("<n>"))] == [False]
    assert [one.finite for one in runner.run(StepPlan((sound,)))] == [False], "its prompt is read once"
    runner.forget("<n>")
    assert [one.finite for one in runner.run(StepPlan((sound,)))] == [True]
