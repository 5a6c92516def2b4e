"""The rules for chats with a tool find each kind of violation, and expect the prompt that the product makes."""

from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.payloads.conversation import ChatMessage, FunctionCall, Role, ToolCall
from tests.chaos.checker import check
from tests.chaos.history import Attempt, History, Job
from tests.chaos.load import Order
from tests.chaos.oracle import answer
from tests.chaos.report import report_of
from tests.chaos.tools import CALL, MAX_TOKENS, SHAPE, STEPS, TOOL, result_of, tool_answers

PROMPT = "run 1, order 5: tell me of mills."
ORDER = Order(n=5, tenant=0, prompt=PROMPT, max_tokens=MAX_TOKENS, follow="poll", shape=SHAPE)
CALL_ID = "job_1"
TEXTS = tool_answers(PROMPT, MAX_TOKENS, CALL_ID)


def ended(job: Job, at: float, text: str) -> Job:
    end = {"state": "succeeded", "terminal": "succeeded", "terminal_events": ("succeeded",), "completed_at": at}
    return replace(job, **end, text=text, stored_text=None if job.is_call else text)


def step(number: int) -> Job:
    name = STEPS[number]
    row = Job(id=f"job_{number}", state="", parent="job_f", step=name, needs=STEPS[:number][-1:], num_noted=1)
    return replace(ended(replace(row, is_call=number == 1), 101.0 + number, TEXTS[name]), used=(5, 3), billed=(5, 3))


ANSWER, CALLED, LAST = map(step, range(3))
FLOW = replace(ended(Job(id="job_f", state="", prompt=PROMPT, is_flow=True), 103.0, TEXTS[STEPS[2]]), used=(15, 9))
ATTEMPTS = [Attempt(f"job_{n}", 1, "worker-1@vm:7:boot", 100.5 + n, 101.0 + n, "succeeded") for n in range(3)]


def made(key: str = CALL_ID, body: str = "{}") -> dict[str, object]:
    return {"kind": "call", "key": key, "body": body}


def history(*calls: dict[str, object], flow: Job = FLOW, steps: tuple[Job, ...] = (ANSWER, CALLED, LAST)) -> History:
    """A chat that ended well, with these calls at the tool."""
    client = [{"kind": "order", **asdict(ORDER)}, {"kind": "accepted", "n": 5, "job": "job_f"}]
    return History(client=client, jobs=[flow], steps=steps, attempts=ATTEMPTS, calls=calls)


def broken(damaged: History) -> set[str]:
    return {*check(damaged, needs_kills=False, needs_stale=False, needs_calls=True).broken}


BROKEN: dict[str, tuple[str, Callable[[], History]]] = {
    "a call under another key": ("tool_keys", lambda: history(made(), made("job_9"))),
    "a call with other arguments": ("tool_keys", lambda: history(made(body='{"day": 1}'))),
    "a result without a call": ("tool_keys", history),
    "the result of another call": (
        "wrong_output",
        lambda: history(made(), steps=(ANSWER, replace(CALLED, text=result_of("job_9")), LAST)),
    ),
    "an answer from another result": (
        "wrong_output",
        lambda: history(made(), steps=(ANSWER, CALLED, replace(LAST, text=TEXTS[STEPS[2]] + "."))),
    ),
    "a chat that ended without its call": ("flow_ends", lambda: history(steps=(ANSWER,))),
    "no chat": ("calls", lambda: replace(history(), jobs=[], steps=[])),
}


@pytest.mark.parametrize(("rule", "damaged"), BROKEN.values(), ids=BROKEN.keys())
def test_it_finds(rule: str, damaged: Callable[[], History]) -> None:
    assert rule in broken(damaged())


def test_a_repeated_call_under_the_same_key_is_good() -> None:
    assert broken(history(made(), made())) == set()
    found = report_of(history(made(), made()), check(history()), seed=1, duration_s=1.0)["calls"]
    assert found == {"chats": 1, "made": 2, "repeated": 1}


def test_the_last_answer_is_to_the_prompt_that_the_product_makes() -> None:
    call = ToolCall(id="call_1", function=FunctionCall(name=TOOL, arguments="{}"))
    prompt = ByteTokenizer().render(
        [
            ChatMessage(role=Role.USER, content=PROMPT),
            ChatMessage(role=Role.ASSISTANT, tool_calls=(call,)),
            ChatMessage(role=Role.TOOL, tool_call_id="call_1", content=result_of(CALL_ID)),
        ]
    )
    assert CALL in prompt
    assert TEXTS[STEPS[2]] == answer(prompt, MAX_TOKENS)
